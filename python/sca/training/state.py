"""What a run's checkpoint holds, whether it is of this run, and how a trainer goes on from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..models import architecture_of
from ..structure.attach import has_groups
from ..structure.groups import find_groups
from .config import TrainConfig
from .sums import EpochSums

if TYPE_CHECKING:
    from .loop import Trainer

__all__ = ["adopt", "check_state", "differing_tensor", "load_state", "state_of", "unresumable"]


def state_of(trainer: Trainer) -> dict[str, Any]:
    """:meth:`Trainer.state`."""
    device = trainer.device
    scheduler, average = trainer.scheduler, trainer.average
    return {
        "config": None if trainer.config is None else trainer.config.to_dict(),
        "data": trainer.data_digest,
        "architecture": architecture_of(trainer.model),
        "active": {name: group.active for name, group in trainer.groups.items()},
        "model": trainer.model.state_dict(),
        "average": None if average is None else {"model": average.module.state_dict(), "steps": average.n_averaged},
        "optimizer": trainer.optimizer.state_dict(),
        "lr_schedule": trainer.schedule_state(),
        "scheduler": None if scheduler is None else trainer.ranks.joint_state(scheduler.state_dict()),
        "epochs": trainer.epochs,
        "steps_per_epoch": trainer.steps_per_epoch,
        "epoch": trainer.epoch,
        "sums": asdict(trainer.sums),
        "history": list(trainer.history),
        "data_seed": trainer.data_seed,
        "random_state": torch.get_rng_state(),
        "cuda_random_state": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def unresumable(config: TrainConfig, held: Mapping[str, Any]) -> list[str]:
    """Fields of ``config`` by which it may not go on with a run of ``held``, a :meth:`TrainConfig.to_dict`: all that
    differ, but for those that say where files lie and what computes, and ``epochs``, of which there may be more."""
    epochs = held.get("epochs")
    is_longer = type(epochs) is int and config.epochs > epochs
    return [name for name in config.differing(held) if not (name == "epochs" and is_longer)]


def check_state(trainer: Trainer, state: Any) -> None:
    """:meth:`Trainer.check_state`."""
    if not isinstance(state, dict) or not {"config", "data", "epoch"} <= state.keys():
        raise ValueError("expected the state of a run, got something else")
    epoch, history = state["epoch"], state.get("history")
    if type(epoch) is not int or not isinstance(history, list) or not 0 <= epoch == len(history):
        raise ValueError("expected as many rows of history as epochs")
    held, own = state["config"], trainer.config
    if not isinstance(held, dict if own is not None else type(None)):
        raise ValueError(f"expected the state of a run {'without' if own is None else 'with'} a configuration")
    if own is not None:
        values = own.to_dict()
        differing = [f"{name} {held[name]!r}, not {values[name]!r}" for name in unresumable(own, held)]
        if differing:
            raise ValueError(f"it is of a run with {', '.join(differing)}")
    if epoch > trainer.epochs:
        raise ValueError(f"epochs: expected at least the {epoch} that are done, got {trainer.epochs}")
    if state.get("steps_per_epoch", trainer.steps_per_epoch) != trainer.steps_per_epoch:
        raise ValueError(
            f"train: expected {state['steps_per_epoch']} batches in an epoch, as in the run that the state is of, "
            f"got {trainer.steps_per_epoch}"
        )
    for part, argument in ("scheduler", "scheduler"), ("average", "ema"):
        if (state.get(part) is None) != (getattr(trainer, part) is None):
            told = "without" if state.get(part) is None else "with"
            raise ValueError(f"{argument}: it is of a run {told} {part}")
    if state["data"] != trainer.data_digest:
        name = "the trainer's" if trainer.dataset is None else trainer.dataset.name
        raise ValueError(f"data: it is of a run on other images or labels than these of {name}")
    differing = differing_tensor(trainer.model, state.get("model"))
    if differing is not None:
        raise ValueError(f"model: {differing}")


def differing_tensor(model: nn.Module, held: Any, ignored: Mapping[str, Any] | None = None) -> str | None:
    """What tells the first tensor by which a ``state_dict`` does not fit a model, in words; None where it fits.

    Args:
        ignored: names of tensors that may be of any shape.
    """
    if not isinstance(held, dict):
        return f"expected tensors by name, got {type(held).__name__}"
    own = model.state_dict()
    for name, value in own.items():
        if name not in held:
            return f"{name}: expected, got nothing"
        other = held[name]
        if isinstance(value, Tensor) != isinstance(other, Tensor):
            return f"{name}: expected {type(value).__name__}, got {type(other).__name__}"
        if isinstance(value, Tensor) and other.shape != value.shape and name not in (ignored or ()):
            return f"{name}: expected {list(value.shape)}, got {list(other.shape)}"
    strange = next((name for name in held if name not in own), None)
    return None if strange is None else f"{strange}: the network has no such tensor"


def load_state(trainer: Trainer, state: dict[str, Any]) -> None:
    """:meth:`Trainer.load_state`."""
    check_state(trainer, state)
    trainer.former_epochs = state.get("epochs", trainer.epochs if trainer.config is None else state["config"]["epochs"])
    adopt(trainer.model, state["model"], state["active"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    if trainer.scheduler is not None:
        # a longer run has another plan, which holds from here on
        same_plan = trainer.former_epochs == trainer.epochs
        trainer.scheduler.load_state_dict(trainer.ranks.own_state(state["scheduler"]), strict=same_plan)
    if trainer.average is not None:
        adopt(trainer.average.module, state["average"]["model"], state["active"])
        trainer.average.n_averaged.copy_(state["average"]["steps"])
    trainer.load_schedule_state(state.get("lr_schedule"))
    trainer.epoch = state["epoch"]
    trainer.sums = EpochSums(**state["sums"])
    trainer.history = state["history"]
    trainer.data_seed = state.get("data_seed", trainer.data_seed)
    torch.set_rng_state(state["random_state"])
    if state["cuda_random_state"] is not None and trainer.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda_random_state"], trainer.device)


def adopt(model: nn.Module, weights: Mapping[str, Any], active: Mapping[str, Tensor]) -> None:
    """Give a model a ``state_dict``, and its channel groups, by name, these active channels; of groups that ``active``
    does not name, all."""
    groups = {name: m.group for name, m in find_groups(model).items()} if has_groups(model) else {}
    for group in groups.values():  # those of the weights may be others than are active now
        group.set_active(range(group.num_channels))
    model.load_state_dict(weights)
    for name, channels in active.items():
        groups[name].set_active(channels)
