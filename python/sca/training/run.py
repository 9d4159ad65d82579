"""One run from its configuration to its summary: train, compact, compare with dense, write everything down."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import checkpoint
from ..data import Dataset, load
from ..files import write_json
from ..models import build
from ..pruning import compact
from ..structure.groups import find_groups
from .config import TrainConfig
from .distributed import Ranks
from .folder import RunFolder
from .loop import Interrupted, Observer, Trainer
from .plot import plot
from .summary import Summary, summarise

_log = logging.getLogger(__name__)

# What has to be the same for a dense run to stand for the dense network of another run.
_SHARED_WITH_REFERENCE = ("data", "limit_test", "model", "width", "stem", "time_steps", "neuron", "neuron_arguments")


def run(
    config: TrainConfig, folder: RunFolder | None, observer: Observer, ranks: Ranks | None = None
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
        dense = Trainer(dense_config, dataset)

    small = compact(trainer.model)
    checkpoint.save(folder.model, {"architecture": small.config, "model": small.state_dict()})
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
    return load(config.data, config.data_dir).limited(config.limit_train, config.limit_test)


def load_model(path: Path) -> nn.Module:
    """The model in a checkpoint or in a run's compacted model, physically small.

    Args:
        path: the file, or the folder of a run (its compacted model, or its checkpoint while it is not finished).

    Raises:
        CheckpointError: the file is damaged or something else.
        OSError: there is none.
    """
    if path.is_dir():
        finished = path / "model.safetensors"
        path = finished if finished.exists() else path / "checkpoint.safetensors"
    return compact(load_pruned(path)).eval()


def load_pruned(path: Path) -> nn.Module:
    """The model in a checkpoint at its full size, its dormant channels among the others: what shares of the dense
    network are counted on.

    Args:
        path: the file, or the folder of a run.

    Raises:
        CheckpointError: the file is damaged or something else.
        OSError: there is none.
    """
    if path.is_dir():
        path = path / "checkpoint.safetensors"
    state = checkpoint.load(path)
    try:
        _check_sizes(state)
        model = build(**state["architecture"])
        groups = find_groups(model)
        for name, active in state.get("active", {}).items():
            if not isinstance(active, Tensor) or active.dtype != torch.int64 or active.dim() != 1:
                raise TypeError(f"{name}: expected the indices of channels")
            groups[name].group.set_active(active)
        model.load_state_dict(state["model"])
    except checkpoint.MALFORMED as error:
        raise checkpoint.CheckpointError(f"{path}: not a model of this version ({checkpoint.told(error)})") from error
    return model.eval()


def _check_sizes(state: Any) -> None:
    """ValueError unless the architecture is as large as the tensors that are to fill it: it may ask for any size."""
    with torch.device("meta"):
        expected = build(**state["architecture"]).state_dict()
    for name, value in state["model"].items():
        if name not in expected or expected[name].shape != value.shape:
            raise ValueError(f"{name}: {list(value.shape)} does not fit the architecture")
    if missing := expected.keys() - state["model"].keys():
        raise ValueError(f"{min(missing)}: missing")


def _train(
    config: TrainConfig, dataset: Dataset, folder: RunFolder | None, observer: Observer, ranks: Ranks
) -> Trainer:
    """Train to the end, from the folder's newest checkpoint if there is one."""
    trainer = Trainer(config, dataset, ranks)
    state = ranks.from_first(lambda: folder.load_checkpoint(trainer.check_state))
    if state is not None:
        try:
            trainer.load_state(state)
        except checkpoint.MALFORMED as error:  # its digest is right, and it is of this run: somebody has made it up
            place = "what the first process sent" if folder is None else folder.path
            raise checkpoint.CheckpointError(
                f"{place}: not the state of this run ({checkpoint.told(error)})"
            ) from error
    if folder is None:
        trainer.fit(observer, lambda state: None, lambda row: None)
        return trainer

    def log(_: object = None) -> None:
        folder.write_log(trainer.history)  # anew, so that it never holds half a line, or an epoch that was lost

    folder.write_config(config)
    log()
    folder.write_updates(trainer.updates)

    def save(state: dict[str, Any]) -> None:
        folder.save_checkpoint(state)
        folder.write_updates(trainer.updates)

    trainer.fit(observer, save, log)
    return trainer


def _train_reference(
    config: TrainConfig, dataset: Dataset, path: Path | None, observer: Observer, ranks: Ranks
) -> Trainer:
    """Train the dense twin in its own folder; what lies there is continued if it is the same run."""
    if path is None:
        return _train(config, dataset, None, observer, ranks)
    held = RunFolder.stored_config(path)
    is_same = held is not None and not config.differing(held.to_dict())
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
    trainer = Trainer(held, dataset if held.limit_train == config.limit_train else load_data(held))
    try:
        trainer.load_state(checkpoint.load(path / "checkpoint.safetensors"))
    except ValueError as error:
        raise ValueError(f"reference: {path} is not usable ({error})") from error
    if trainer.epoch < held.epochs:
        raise ValueError(f"reference: expected a finished run, {path} is at epoch {trainer.epoch} of {held.epochs}")
    return trainer
