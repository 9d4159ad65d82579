"""One run from its configuration to its summary: train, compact, compare with dense, write everything down."""

from __future__ import annotations

import logging
from pathlib import Path

from torch.nn.functional import pad

from .. import checkpoint, saving
from ..data import Dataset, FrameSettings, load
from ..files import write_json
from ..report.runs import MOST_SIDE
from ..settings import settings
from ..structure import compact
from . import checkpoints, environment
from .callbacks import Callback, Observer
from .config import TrainConfig
from .distributed import Ranks
from .folder import RunFolder
from .loop import Interrupted, Trainer
from .plot import plot
from .recording import store_recording
from .state import unresumable
from .summary import Summary, summarise
from .weights import end_with_result, load_model, load_pruned

__all__ = ["load_data", "load_model", "load_pruned", "run"]

_log = logging.getLogger(__name__)

# What has to be the same for a dense run to stand for the dense network of another run.
_SHARED_WITH_REFERENCE = ("data", "limit_test", "model", "width", "stem", "pool", "time_steps")
_SHARED_WITH_REFERENCE += ("neuron", "neuron_arguments")
_SHARED_WITH_REFERENCE += tuple(name for name, each in settings(FrameSettings).items() if not each.movable)


def run(
    config: TrainConfig, folder: RunFolder | None, observer: Callback | Observer, ranks: Ranks | None = None
) -> Summary | None:
    """Train in ``folder``, going on from its checkpoint if there is one; then write the compacted model, the summary
    and the plot.

    Args:
        config: what to do.
        folder: where; None on all processes but the first.
        observer: of this process; when one asks to stop, all do.
        ranks: the processes that train together. They part after training: the first measures the summary alone.

    Returns:
        The summary; None on all processes but the first.

    Raises:
        ValueError: the data, the model or an argument is not usable; nothing has been trained.
        Interrupted: the observer asked to stop; the checkpoint has been written.
        Diverged: the loss or a parameter became NaN or infinite; the last good checkpoint is kept.
        OSError: a file could not be written; the last good checkpoint is kept.
    """
    ranks = ranks or Ranks()
    dataset = ranks.one_before_others(lambda: load_data(config))
    dense = _finished_reference(config, dataset) if ranks.is_first else None
    has_twin = folder is not None and config.density < 1 and config.reference == "train"
    twin = RunFolder.inside(folder.path, "dense") if has_twin else None
    trainer = _train(config, dataset, folder, observer, ranks)
    dense_config = config.changed(density=1.0, reference=None)
    if config.density == 1:
        dense = trainer
    elif config.reference == "train":
        dense = _train_reference(dense_config, dataset, twin, observer, ranks)
    for trained in (trainer, dense):
        if trained is not None:
            trained.leave_ranks()
    ranks.leave()
    if folder is None:
        return None
    if dense is None:
        dense = Trainer.from_config(dense_config, dataset, weights=False)

    small = compact(trainer.model)
    saving.save(small, folder.model, plan=None if trainer.scheduler is None else trainer.scheduler.plan)
    if observer.stop_requested:
        raise Interrupted
    summary = summarise(trainer, small, dense)
    write_json(folder.summary, summary.to_dict())
    try:
        plot(folder.plot, trainer.history, dense.history, config)
    except ImportError as error:
        _log.warning("no %s: %s", folder.plot.name, error)
    return summary


def load_data(config: TrainConfig) -> Dataset:
    """The data set of a run."""
    data = load(config.data, config.data_dir, config.frame_settings, config.time_steps)
    return data.limited(config.limit_train, config.limit_test)


def _train(
    config: TrainConfig, dataset: Dataset, folder: RunFolder | None, observer: Callback | Observer, ranks: Ranks
) -> Trainer:
    """Train to the end, from the folder's newest checkpoint if there is one."""
    begun = ranks.from_first(lambda: folder.checkpoint.exists() or folder.previous.exists())
    trainer = Trainer.from_config(config, dataset, ranks, weights=not begun)
    checkpoints.resume(trainer, None if folder is None else folder.checkpoints)
    if folder is not None:
        trainer.callbacks += folder.callbacks(config)
        if trainer.former_epochs not in (None, config.epochs):
            folder.forget_results()
        folder.write_config(config)
        environment.record_start(folder.environment, config.device, ranks.size)
        if dataset.time_steps is not None:
            _store_recording(folder.recording, dataset)
    trainer.fit(observer)
    if folder is not None:
        end_with_result(trainer, folder.path)
    return trainer


def _store_recording(path: Path, dataset: Dataset) -> None:
    """The first test recording, for the run's page; of a larger camera's, pixels are added up."""
    frames, label = dataset.test.images[0].cpu(), int(dataset.test.labels[0])
    side = -(-max(frames.shape[1:3]) // MOST_SIDE)
    if side > 1:
        steps, height, width, channels = frames.shape
        wide = pad(frames.int(), (0, 0, 0, -width % side, 0, -height % side))
        frames = wide.view(steps, -(-height // side), side, -(-width // side), side, channels).sum((2, 4))
    name = dataset.classes[label] if dataset.classes else str(label)
    store_recording(path, frames.numpy(), label, name, dataset.told)


def _train_reference(
    config: TrainConfig, dataset: Dataset, path: Path | None, observer: Callback | Observer, ranks: Ranks
) -> Trainer:
    """Train the dense twin in its own folder; what lies there is continued if it is the same run."""
    if path is None:
        return _train(config, dataset, None, observer, ranks)
    held = RunFolder.stored_config(path)
    is_same = held is not None and not unresumable(config, held.to_dict())
    with RunFolder(path, "resume" if is_same else "overwrite") as folder:
        return _train(config, dataset, folder, observer, ranks)


def _finished_reference(config: TrainConfig, dataset: Dataset) -> Trainer | None:
    """The trainer of the dense run that ``reference`` names, if it names one."""
    if config.reference in (None, "train") or config.density == 1:
        return None
    path = Path(config.reference)
    held = RunFolder.stored_config(path)
    if held is None:
        raise ValueError(f"reference: expected the folder of a dense run, got {path}")
    differing = [name for name in _SHARED_WITH_REFERENCE if getattr(held, name) != getattr(config, name)]
    if held.density < 1 or differing:
        raise ValueError(
            f"reference: expected a dense run of the same network, {path} differs in {differing or 'density'}"
        )
    held = held.changed(device=config.device, data_dir=config.data_dir)
    data = dataset if held.limit_train == config.limit_train else load_data(held)
    trainer = Trainer.from_config(held, data, weights=False)
    try:
        trainer.load_state(checkpoint.load(path / "checkpoint.safetensors"))
    except ValueError as error:
        raise ValueError(f"reference: {path} is not usable ({error})") from error
    if trainer.epoch < held.epochs:
        raise ValueError(f"reference: expected a finished run, {path} is at epoch {trainer.epoch} of {held.epochs}")
    end_with_result(trainer, path)
    return trainer
