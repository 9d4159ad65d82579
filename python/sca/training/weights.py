"""Networks from what runs leave: read back, physically small or at full size, and as a start for another run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sca_kernels.nn import ChannelGroup

from .. import checkpoint, saving
from ..files import read_whole
from ..models import build
from ..structure import compact
from ..structure.attach import has_groups
from ..structure.groups import find_groups
from .checkpoints import BestWeights, result_weights
from .distributed import Ranks
from .state import adopt, differing_tensor

if TYPE_CHECKING:
    from .loop import Trainer

__all__ = ["end_with_result", "load_model", "load_pruned", "start_from"]


def load_model(path: Path) -> nn.Module:
    """The model in a file of :func:`sca.save`, as a run's ``model.safetensors`` is, or in a checkpoint, physically
    small.

    Args:
        path: the file, or the folder of a run (its compacted model; while it is not finished, its best epoch if it
            keeps that, or its checkpoint).

    Raises:
        CheckpointError: the file is damaged or something else.
        OSError: there is none.
    """
    if path.is_dir():
        finished = path / "model.safetensors"
        path = finished if finished.exists() else _full_size(path)
    return compact(load_pruned(path)).eval()


def load_pruned(path: Path) -> nn.Module:
    """The model in a checkpoint, or in a file of :func:`sca.save`, at the size it has there, its dormant channels among
    the others: what shares of the dense network are counted on.

    Args:
        path: the file, or the folder of a run.

    Raises:
        CheckpointError: the file is damaged or something else.
        OSError: there is none.
    """
    path = _full_size(path)
    content = read_whole(path)
    if checkpoint.form_of(content) == saving.FORMAT:
        return saving.from_bytes(content, path)
    state = checkpoint.from_bytes(content, path)
    try:
        weights, active = _contents(state)
        _check_sizes(state["architecture"], weights)
        model = build(**state["architecture"])
        adopt(model, weights, active)
    except checkpoint.MALFORMED as error:
        raise checkpoint.CheckpointError(f"{path}: not a model of this version ({checkpoint.told(error)})") from error
    return model.eval()


def start_from(model: nn.Module, source: str | Path, ranks: Ranks | None = None) -> None:
    """Give a model the weights and the active channels of a run.

    Layers whose size is the number of classes keep what they have where the run had another number of them.

    Args:
        model: made by :func:`sca.models.build`.
        source: the folder of a run, one of its files (``checkpoint.safetensors``, ``best.safetensors``), or a file of
            :func:`sca.save`.
        ranks: the processes that do so together; the first one reads.

    Raises:
        ValueError: a tensor or a channel group is not that of the model; the message names it, and the model is as it
            was. Or there is no such file, or it is damaged.
    """
    path = _full_size(Path(source))
    try:
        state = (ranks or Ranks()).from_first(lambda: _read(path))
    except OSError as error:
        raise ValueError(
            f"weights: expected the folder of a run, or a file of its weights, got {source} ({error.strerror})"
        ) from error
    except ValueError as error:  # a CheckpointError, or a network that none of our families makes
        raise checkpoint.CheckpointError(f"weights: {error}") from error
    try:
        weights, active = _contents(state)
        begun_anew = _of_classes(model, state.get("architecture"), weights)
    except checkpoint.MALFORMED as error:
        told = checkpoint.told(error)
        raise checkpoint.CheckpointError(f"weights: {path}: not the weights of a run ({told})") from error
    differing = differing_tensor(model, weights, begun_anew)
    if differing is not None:
        compacted = (state.get("architecture") or {}).get("widths")
        advice = "; it is a compacted network: name the run's folder, or its checkpoint" if compacted else ""
        raise ValueError(f"weights: {path}: {differing}{advice}")
    groups = {name: members.group for name, members in find_groups(model).items()}
    # the file of a compacted network says nothing of groups: all channels are active
    strange = (groups.keys() ^ active.keys()) if active else set()
    if strange:
        raise ValueError(f"weights: {path}: expected the channel groups of the network, which differ in {min(strange)}")
    try:
        for name, channels in active.items():  # on others first, so that the model is changed as a whole or not at all
            ChannelGroup(groups[name].num_channels, name=name).set_active(channels)
    except ValueError as error:
        raise ValueError(f"weights: {path}: {error}") from error
    adopt(model, {**weights, **begun_anew}, active)


def _read(path: Path) -> Any:
    """What a checkpoint holds, or the same of a network that :func:`sca.save` wrote."""
    content = read_whole(path)
    if checkpoint.form_of(content) != saving.FORMAT:
        return checkpoint.from_bytes(content, path)
    model = saving.from_bytes(content, path)
    groups = find_groups(model) if has_groups(model) else {}
    active = {name: members.group.active for name, members in groups.items()}
    return {"architecture": model.config, "active": active, "model": dict(model.state_dict())}


def end_with_result(trainer: Trainer, folder: Path) -> None:
    """Have a trainer's model be what its run, in ``folder``, results in: the best epoch where it keeps that, or the
    running average where there is one.

    Raises:
        CheckpointError: the file of the best epoch is damaged or something else.
        OSError: there is none.
    """
    if trainer.config.keep_best:
        best = BestWeights(folder)
        try:
            trainer.end_with(*_contents(best.load()))
        except checkpoint.MALFORMED as error:
            raise checkpoint.CheckpointError(
                f"{best.file}: not the best weights of this run ({checkpoint.told(error)})"
            ) from error
    elif trainer.average is not None:
        active = {name: group.active for name, group in trainer.groups.items()}
        trainer.end_with(trainer.average.module.state_dict(), active)


def _of_classes(model: nn.Module, architecture: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's own tensors where they, and those of ``weights``, differ by the number of classes alone."""
    if not isinstance(architecture, dict) or not isinstance(getattr(model, "config", None), dict):
        return {}
    theirs, ours = architecture.get("num_classes"), model.config.get("num_classes")
    found = {}
    for name, value in model.state_dict().items():
        other = weights.get(name)
        expected = (theirs, *value.shape[1:])
        if theirs != ours and other is not None and value.dim() and len(value) == ours and other.shape == expected:
            found[name] = value
    return found


def _full_size(path: Path) -> Path:
    """The file itself, or that of a run's folder which holds its result at full size."""
    if not path.is_dir():
        return path
    best = path / "best.safetensors"
    return best if best.exists() else path / "checkpoint.safetensors"


def _contents(state: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights that are a file's result, and the active channels by group; a :data:`checkpoint.MALFORMED` error
    where it holds something else."""
    weights, active = result_weights(state), state.get("active", {})
    for name, channels in active.items():
        if not isinstance(channels, Tensor) or channels.dtype != torch.int64 or channels.dim() != 1:
            raise TypeError(f"{name}: expected the indices of channels")
    if not all(isinstance(value, Tensor) for value in weights.values()):
        raise TypeError("expected tensors by name")
    return weights, active


def _check_sizes(architecture: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """ValueError unless the architecture is as large as the tensors that are to fill it: it may ask for any size."""
    with torch.device("meta"):
        differing = differing_tensor(build(**architecture), weights)
    if differing is not None:
        raise ValueError(f"{differing}: does not fit the architecture")
