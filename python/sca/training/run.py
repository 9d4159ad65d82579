"""One run from its configuration to its summary: train, compact, compare with dense, write everything down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from ..data import Dataset, load
from ..models import build
from ..pruning import compact
from ..pruning.groups import find_groups
from . import checkpoint
from .config import TrainConfig
from .files import write_json
from .folder import RunFolder
from .loop import Observer, Trainer
from .plot import plot
from .summary import Summary, summarise

# What has to be the same for a dense run to stand for the dense network of another run.
_SHARED_WITH_REFERENCE = ("data", "limit_test", "model", "width", "stem", "time_steps", "neuron", "neuron_arguments")


def run(config: TrainConfig, folder: RunFolder, observer: Observer) -> Summary:
    """Train in ``folder``, going on from its checkpoint if there is one; then write the compacted model, the summary
    and the plot.

    Raises:
        ValueError: the data, the model or an argument is not usable; nothing has been trained.
        Interrupted: the observer asked to stop; the checkpoint has been written.
    """
    dataset = load_data(config)
    dense = _finished_reference(config, dataset)
    trainer = _trainer(config, dataset, folder)
    trainer.fit(observer, folder.save_checkpoint, folder.append_log)

    small = compact(trainer.model)
    checkpoint.save(folder.model, {"architecture": small.config, "model": small.state_dict()})
    dense_config = config.changed(density=1.0, reference=None)
    if config.density == 1:
        dense = trainer
    elif config.reference == "train":
        dense = _train_reference(dense_config, dataset, folder.path / "dense", observer)
    elif dense is None:
        dense = Trainer(dense_config, dataset)
    summary = summarise(trainer, small, dense)
    write_json(folder.summary, summary.to_dict())
    plot(folder.plot, trainer.history, dense.history, config)
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
    state = checkpoint.load(path)
    try:
        model = build(**state["architecture"])
        groups = find_groups(model)
        for name, active in state.get("active", {}).items():
            groups[name].group.set_active(active)
        model.load_state_dict(state["model"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise checkpoint.CheckpointError(f"{path}: not a model of this version ({error})") from error
    return compact(model).eval()


def _trainer(config: TrainConfig, dataset: Dataset, folder: RunFolder) -> Trainer:
    """A trainer as the folder's newest checkpoint left it; a new one if there is none."""
    state = folder.load_checkpoint()
    trainer = Trainer(config, dataset)
    if state is not None:
        trainer.load_state(state)
    folder.write_config(config)
    folder.write_log(trainer.history)
    return trainer


def _train_reference(config: TrainConfig, dataset: Dataset, path: Path, observer: Observer) -> Trainer:
    """Train the dense twin in its own folder; what lies there is continued if it is the same run."""
    held = RunFolder.stored_config(path)
    with RunFolder(path, "resume" if held == config else "overwrite") as folder:
        trainer = _trainer(config, dataset, folder)
        trainer.fit(observer, folder.save_checkpoint, folder.append_log)
    return trainer


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
    state: dict[str, Any] = checkpoint.load(path / "checkpoint.safetensors")
    if state["epoch"] < held.epochs:
        raise ValueError(f"reference: expected a finished run, {path} is at epoch {state['epoch']} of {held.epochs}")
    trainer = Trainer(held.changed(device=config.device), dataset)
    trainer.load_state(state)
    return trainer
