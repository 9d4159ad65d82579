"""Optimizer steps that see active channels alone (method: dormant ones stay bit-identical, weight decay and momentum
included).

Restoring dormant entries after a full step would do for element-wise optimizers, at the price of the full step; an
optimizer that mixes entries (Muon orthogonalises whole matrices) would still see them. So the step runs on compact
copies.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sca_kernels.nn import ChannelGroup

from .groups import Axis

__all__ = ["ActiveOptimizer"]


class ActiveOptimizer:
    """Makes ``optimizer.step`` work on the active entries of each parameter, its gradient and its optimizer state.

    While the step runs, a parameter with dormant entries holds the dense block of its active ones, and so do its
    gradient and all of its optimizer state; afterwards the blocks are written back and everything has its full size
    and identity again, also when the step raises or is interrupted. State that a step creates is zero for dormant
    entries. Works with any optimizer whose state tensors have the shape of their parameter, or 1 in place of some of
    its sizes (Adafactor). Hooks of the optimizer run inside the step and see the blocks.

    ``step`` is wrapped on the instance, as torch's learning-rate schedulers do: step hooks could not restore anything
    after an exception.

    Args:
        optimizer: holds any of the parameters.
        axes: the channel axes of the model's parameters, see :func:`sca.pruning.groups.parameter_axes`.

    Raises:
        ValueError: the optimizer is wrapped already, or (by ``optimizer.step``) a closure is passed while channels
            are dormant.
    """

    def __init__(self, optimizer: Optimizer, axes: Mapping[nn.Parameter, tuple[Axis, ...]]) -> None:
        attached = getattr(optimizer.step, "_active_optimizer", None)
        if attached is not None and attached.axes:
            raise ValueError("optimizer: a scheduler is attached to it already; call its detach() first")
        self.optimizer = optimizer
        self.axes = dict(axes)
        step = optimizer.step

        @functools.wraps(step)
        def active_step(_: Optimizer, closure: Any = None, **arguments: Any) -> Any:
            if closure is not None:
                if self._sparse():
                    raise ValueError(
                        "closure: expected None while channels are dormant: it would run the model within the step"
                    )
                return step(closure, **arguments)
            with self._compact():
                return step(**arguments)

        active_step._active_optimizer = self
        optimizer.step = types.MethodType(active_step, optimizer)

    def detach(self) -> None:
        """Let the optimizer work on full tensors again (the wrapper stays, others may have wrapped it, and passes
        every call on).
        """
        self.axes = {}

    @torch.no_grad()
    def clear(self, channels: Mapping[ChannelGroup, Tensor]) -> None:
        """Zero the optimizer state of these channels (int64, CPU), both as outputs of one layer and as inputs of the
        next.
        """
        for p, state in self.optimizer.state.items():
            for axis in self.axes.get(p, ()):
                if axis.group in channels:
                    entries = axis.entries(channels[axis.group].to(p.device))
                    for value in state.values():
                        if _spans(value, p.shape, axis):
                            value.index_fill_(axis.dim, entries, 0)

    def _sparse(self) -> list[nn.Parameter]:
        """The optimizer's parameters that have dormant entries."""
        return [
            p
            for group in self.optimizer.param_groups
            for p in group["params"]
            if not all(axis.group.all_active for axis in self.axes.get(p, ()))
        ]

    @contextmanager
    def _compact(self) -> Iterator[None]:
        swapped: list[_Swap] = []
        try:
            for p in self._sparse():
                if p.grad is not None:
                    swapped.append(_Swap(p, self.optimizer.state.get(p, {}), self.axes[p]))
                    swapped[-1].shrink()
            yield
        finally:
            for swap in swapped:
                swap.restore(self.optimizer.state.get(swap.p, {}))


class _Swap:
    """One parameter's full tensors, put aside while the optimizer sees their active blocks."""

    def __init__(self, p: nn.Parameter, state: dict[str, Any], axes: tuple[Axis, ...]) -> None:
        self.p, self.axes = p, axes
        self.data, self.grad = p.data, p.grad
        self.state = {key: value for key, value in state.items() if any(_spans(value, p.shape, axis) for axis in axes)}
        self.live = state

    def shrink(self) -> None:
        # A gradient must have its parameter's shape, so the parameter changes between two gradients.
        self.p.grad = None
        self.p.data = self.data[self._index(self.data)]
        self.p.grad = self.grad[self._index(self.grad)]
        for key, value in self.state.items():
            self.live[key] = value[self._index(value)]

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        compact = self.p.data
        self.p.grad = None
        self.p.data = self.data
        self.p.grad = self.grad
        if compact is not self.data:
            self.p[self._index(self.p)] = compact  # through p: autograd must see the change
        for key, value in state.items():
            full = self.state.get(key)
            if full is None and any(_spans(value, compact.shape, axis) for axis in self.axes):
                full = self._zeros_like(value, compact.shape)
            if full is not None and value is not full:
                full[self._index(full)] = value
                state[key] = full

    def _zeros_like(self, block: Tensor, compact: torch.Size) -> Tensor:
        """Full-size zeros for state that the step created as ``block``, in the layout of the parameter where it has
        its shape.
        """
        if block.shape == compact:
            return torch.zeros_like(self.data, dtype=block.dtype)
        sizes = [
            size if kept == small else kept
            for size, small, kept in zip(self.data.shape, compact, block.shape, strict=True)
        ]
        return block.new_zeros(sizes)

    def _index(self, tensor: Tensor) -> tuple[Tensor | slice, ...]:
        """Index of the active block of a full tensor: one expression to read and to write it."""
        spanned = {
            axis.dim: axis for axis in self.axes if _spans(tensor, self.data.shape, axis) and not axis.group.all_active
        }
        index: list[Tensor | slice] = []
        for dim in range(max(spanned, default=-1) + 1):
            if dim not in spanned:
                index.append(slice(None))
                continue
            entries = spanned[dim].entries(spanned[dim].group.active.to(tensor.device))
            index.append(entries[:, None] if len(spanned) == 2 and dim == 0 else entries)
        return tuple(index) or (slice(None),)


def _spans(value: Any, shape: torch.Size, axis: Axis) -> bool:
    """Whether ``value`` is a tensor laid out like one of ``shape`` that lists the axis' channels (and not 1 in their
    place).
    """
    return (
        isinstance(value, Tensor)
        and value.dim() == len(shape)
        and value.shape[axis.dim] == shape[axis.dim]
        and all(size in (1, full) for size, full in zip(value.shape, shape, strict=True))
    )
