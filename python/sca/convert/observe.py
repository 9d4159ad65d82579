"""What one pass of a network shows: which modules run, on what, and which batch norm is read by a neuron alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..structure.untouched import untouched

__all__ = ["Observed", "observe"]

# They read no values: what lies behind the result is the same memory, in the same order of channels.
_VIEWS = {
    *("view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "contiguous", "detach", "view_as", "expand"),
    *("size", "dim", "stride", "is_contiguous", "__len__", "ndimension", "numel", "element_size", "type", "data_ptr"),
    *("__get__", "storage_offset", "untyped_storage", "requires_grad_", "is_floating_point", "is_complex"),
}


class Observed:
    """Attributes:
    calls: how often each module ran.
    ranks: of the tensor that each was called with first.
    spiking: the input of modules whose output had its shape, and held zeros and ones.
    behind: the batch norm whose output, and nothing else of it, a neuron alone has read.
    """

    def __init__(self) -> None:
        self.calls: dict[nn.Module, int] = {}
        self.ranks: dict[nn.Module, int] = {}
        self.spiking: dict[nn.Module, Tensor] = {}
        self.behind: dict[nn.Module, nn.Module] = {}


def observe(
    model: nn.Module, inputs: tuple[Any, ...], norms: Iterable[nn.Module], neurons: Iterable[nn.Module]
) -> Observed:
    """Run the model once, in the mode it is in, and leave it as it was; what it runs with, see :class:`Observed`."""
    found, norms, neurons = Observed(), set(norms), set(neurons)
    mode = _Reads(norms, neurons, found)
    hooks = []
    for module in model.modules():
        hooks.append(module.register_forward_pre_hook(mode.enter, with_kwargs=True))
        hooks.append(module.register_forward_hook(mode.leave, always_call=True))
    try:
        with untouched(model), torch.no_grad(), mode:
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    readers = mode.readers
    for norm, (_, by) in mode.made.items():
        if len(by) == 1 and found.calls[norm] == 1:
            (reader,) = by
            if reader in neurons and found.calls[reader] == 1 and readers.get(reader) == 1:
                found.behind[reader] = norm
    return found


class _Reads(TorchFunctionMode):
    """Notes who reads the memory that batch norms have written."""

    def __init__(self, norms: set[nn.Module], neurons: set[nn.Module], found: Observed) -> None:
        super().__init__()
        self.norms, self.neurons, self.found = norms, neurons, found
        self.made: dict[nn.Module, tuple[Tensor, set[Any]]] = {}
        self.readers: dict[nn.Module, int] = {}
        self._inside: list[nn.Module] = []  # neurons and batch norms that run

    def enter(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.found.calls[module] = self.found.calls.get(module, 0) + 1
        first = next((x for x in (*arguments, *named.values()) if isinstance(x, Tensor)), None)
        if first is not None:
            self.found.ranks.setdefault(module, first.dim())
        if module in self.neurons and not self._inside:
            self._note(first, module)
            self.readers[module] = self.readers.get(module, 0) + 1
        if module in self.neurons or module in self.norms:
            self._inside.append(module)

    def leave(self, module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if self._inside and self._inside[-1] is module:
            self._inside.pop()
        x = arguments[0] if arguments else None
        if isinstance(x, Tensor) and isinstance(output, Tensor) and _are_spikes(output, x):
            self.found.spiking.setdefault(module, x.detach())
        if module in self.norms and isinstance(output, Tensor):
            self.made[module] = (output, set())  # held, so that no other tensor gets its memory

    def __torch_function__(self, function, types, arguments=(), named=None):
        if not self._inside and self.made and getattr(function, "__name__", "") not in _VIEWS:
            for x in _tensors((arguments, named or {})):
                self._note(x, function)
        return function(*arguments, **(named or {}))

    def _note(self, x: Tensor | None, reader: Any) -> None:
        if x is None:
            return
        where = x.untyped_storage().data_ptr()
        for output, by in self.made.values():
            if output.untyped_storage().data_ptr() == where:
                split = isinstance(reader, nn.Module) and not _keeps_channels(output, x)
                by.add(("otherwise", reader) if split else reader)


def _keeps_channels(output: Tensor, x: Tensor) -> bool:
    """Whether a batch norm's output is read whole, with its channels and what is behind them in their places: as
    [T, N, C, *S], or one step of that, of frames [M, C, *S] or a sequence."""
    for dim in (1, 2):
        for at in (1, 2):
            if x.dim() > at and output.dim() > dim and x.shape[at:] == output.shape[dim:]:
                return x.numel() == output.numel()
    return False


def _are_spikes(output: Tensor, x: Tensor) -> bool:
    """Whether a module's output has the shape of its input, and holds zeros and ones."""
    same = x.dim() > 1 and x.is_floating_point() and x.shape == output.shape
    return same and bool(((output == 0) | (output == 1)).all())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
