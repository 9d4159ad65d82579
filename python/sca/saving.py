"""A network in one file: its weights, its structure, and what it takes to build it again. Nothing is pickled.

The file is safetensors: its tensors are the state_dict's, under their own names, so that every reader of the format
gets the weights; a JSON text in its metadata says the rest, and a digest over both shows damage.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sca_kernels
from sca_kernels import checks

from . import checkpoint
from .checkpoint import CheckpointError
from .files import read_whole, write_whole
from .models import architecture_of, build
from .structure import restore_structure, structure_of
from .structure.modes import plain_mode
from .structure.wrappers import plain_name, unwrapped

__all__ = ["FORMAT", "describe", "from_bytes", "load", "save"]

FORMAT = "sca-model-1"


def save(model: nn.Module, path: str | Path, *, plan: Any = None) -> None:
    """Write a network to a file, whole: what was there before stays until all of it is on the disk.

    Args:
        model: pruned or not, compacted or not; as it is, or in a wrapper of torch.compile or DistributedDataParallel.
            Its state_dict holds tensors alone.
        path: the file, by habit ``*.safetensors``; its folder exists.
        plan: what it was pruned by, for the record: ``scheduler.plan``.

    Raises:
        TypeError: the model is none, its state_dict holds something else than dense tensors, or the plan is none.
        OSError: the file cannot be written.
    """
    file = _file(path)
    model = unwrapped(checks.instance("model", model, nn.Module, "a torch.nn.Module"))
    if plan is not None and not callable(getattr(plan, "record", None)):
        raise TypeError(f"plan: expected what scheduler.plan is, or None, got {type(plan).__name__}")
    tensors = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            raise TypeError(f"model: expected dense tensors in its state_dict, got {checks.describe(value)} in {name}")
        tensors[plain_name(name)] = value.detach().cpu().contiguous().clone()  # shared ones, each for itself
    description = {
        "class": f"{type(model).__module__}.{type(model).__qualname__}",
        "architecture": architecture_of(model),
        "structure": structure_of(model),
        "plan": None if plan is None else plan.record(),
        "versions": {
            "sca_kernels": sca_kernels.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    write_whole(file, checkpoint.sealed(tensors, json.dumps(description), FORMAT))


def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Read a network that :func:`save` wrote.

    Args:
        path: the file.
        model: None builds one of ``sca.models`` anew, on the CPU, in eval mode. Any other network is given as an
            instance of its class, with channel groups or without: it gets the weights and the structure, keeps its
            device, dtypes and modes, and is left as it was where they do not fit.

    Returns:
        The network: ``model``, if it was given.

    Raises:
        CheckpointError: a ValueError: the file is damaged, of another format, or does not fit the model; the message
            names the file, and the tensor, group or module.
        ValueError: ``model`` is needed, since the network is none of ``sca.models``.
        OSError: there is no such file.
    """
    if model is not None:
        checks.instance("model", model, nn.Module, "a torch.nn.Module")
    return from_bytes(read_whole(_file(path)), path, model)


@plain_mode()
def from_bytes(content: bytes, path: object, model: nn.Module | None = None) -> nn.Module:
    """:func:`load` of a file's content; errors name ``path``."""
    tensors, description = _opened(content, path)
    if model is None and description.get("architecture") is None:
        raise ValueError(
            f"model: expected an instance of {description.get('class')} for {path} to be loaded into, since it is none "
            "of sca.models, got None"
        )
    try:
        if model is None:
            return _rebuilt(description["architecture"], description["structure"], tensors)
        _fill(unwrapped(model), description["structure"], tensors)
    except checkpoint.MALFORMED as error:
        raise CheckpointError(f"{path}: does not fit the model ({checkpoint.told(error)})") from error
    return model


def describe(path: str | Path) -> dict[str, Any]:
    """What a file says of its network: ``class``, ``architecture`` (of ``sca.models``, or None), ``structure``,
    ``plan`` and ``versions``.

    Raises:
        CheckpointError: the file is damaged or of another format.
        OSError: there is no such file.
    """
    return _opened(read_whole(_file(path)), path)[1]


def _file(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise TypeError(f"path: expected the name of a file, got {checks.describe(path)}")
    if not os.fspath(path) or "\0" in os.fspath(path):
        raise ValueError(f"path: expected the name of a file, got {os.fspath(path)!r:.80}")
    return Path(path)


def _opened(content: bytes, path: object) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description."""
    tensors, text = checkpoint.unsealed(content, path, FORMAT)
    description = json.loads(text)
    if not isinstance(description, dict):
        raise CheckpointError(f"{path}: expected the description of a model, got {type(description).__name__}")
    return tensors, description


def _rebuilt(architecture: dict[str, Any], structure: Any, tensors: Mapping[str, Tensor]) -> nn.Module:
    """One of ``sca.models`` with these weights, in their dtypes."""
    with torch.device("meta"):  # a file that somebody made up may ask for any size
        _require_fit(build(**architecture), tensors)
    model = build(**architecture)
    _fill(model, structure, tensors, assign=True)
    return model.to(memory_format=torch.channels_last).eval()


def _fill(model: nn.Module, structure: Any, tensors: Mapping[str, Tensor], assign: bool = False) -> None:
    """Give a model structure and weights; nothing is changed where one of them does not fit."""
    _require_fit(model, tensors)
    if not structure["groups"]:  # it was compacted, or never had any: all of its channels are active
        structure = structure_of(model)
        for kept in structure["groups"].values():
            kept["active"] = None
    restore_structure(model, structure)
    state = model.state_dict()  # whose metadata says by now what is active
    for name in state:
        state[name] = tensors[plain_name(name)]
    model.load_state_dict(state, assign=assign)


def _require_fit(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """ValueError, naming the first, unless the tensors are those of the model's state_dict."""
    expected = {plain_name(name): value for name, value in model.state_dict().items()}
    for name in {**expected, **tensors}:
        own = list(expected[name].shape) if name in expected else "no such tensor"
        got = list(tensors[name].shape) if name in tensors else "no such tensor"
        if own != got:
            raise ValueError(f"{name}: expected {own}, as in the model, got {got}")
