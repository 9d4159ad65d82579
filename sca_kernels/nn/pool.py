"""Pools that keep no input for the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import nn as tnn

from .. import checks
from ..ops import transformed


def _keep(ctx: Any, x: Tensor, geometry: tuple[Any, ...]) -> None:
    """Keep what a pool's gradient takes: the geometry, and of the input its shape and layout."""
    last = x.is_contiguous(memory_format=torch.channels_last)
    ctx.shape, ctx.layout = x.shape, torch.channels_last if last else torch.contiguous_format
    ctx.geometry = geometry


def _stand_in(ctx: Any, grad: Tensor) -> Tensor:
    """What stands for the input in torch's backward operators, which read its shape and layout alone."""
    return torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.layout)


class _MaxPool(torch.autograd.Function):
    """torch's max-pool; of its input, whose gradient depends on the indices alone, only shape and layout are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *geometry: Any) -> Tensor:
        y, indices = torch.ops.aten.max_pool2d_with_indices(x, *geometry)
        ctx.save_for_backward(indices)
        _keep(ctx, x, geometry)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        x = _stand_in(ctx, grad)
        g = torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *ctx.geometry, indices)
        return g, *[None] * len(ctx.geometry)


class _AvgPool(torch.autograd.Function):
    """torch's average pool; of its input only shape and layout are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *geometry: Any) -> Tensor:
        _keep(ctx, x, geometry)
        return torch.ops.aten.avg_pool2d(x, *geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad.contiguous(memory_format=ctx.layout)  # of another layout, torch copies the larger result twice
        g = torch.ops.aten.avg_pool2d_backward(grad, _stand_in(ctx, grad), *ctx.geometry)
        return g, *[None] * len(ctx.geometry)


def _checked(kernel_size: Any, stride: Any, padding: Any, **dilation: Any) -> list[int | Sequence[int]]:
    """The sizes of a pool's window, its stride with them, as torch's pools take them."""
    sizes = {"kernel_size": kernel_size, "stride": kernel_size if stride is None else stride, "padding": padding}
    sizes |= dilation
    pairs = {name: checks.pair(name, size, 0 if name == "padding" else 1) for name, size in sizes.items()}
    if any(2 * zeros > side for zeros, side in zip(pairs["padding"], pairs["kernel_size"], strict=True)):
        raise ValueError(f"padding: expected at most half of the kernel {pairs['kernel_size']}, got {padding}")
    return [size if isinstance(size, (int, Sequence)) else int(size) for size in sizes.values()]


class _Pool:
    """What the pools share, in front of torch's class."""

    dilation: int | Sequence[int] = 1

    def _geometry(self) -> list[list[int]]:
        """Kernel, stride, padding and dilation, two of each."""
        pairs = (self.kernel_size, self.stride, self.padding, self.dilation)
        return [[n, n] if isinstance(n, int) else list(n) for n in pairs]

    def _has_room(self, x: Tensor) -> bool:
        """Whether a window fits in."""
        sizes = zip(x.shape[-2:], *self._geometry(), strict=True)
        # with ceil_mode the last window may begin in the map and end outside
        return all(n + 2 * p - d * (k - 1) - 1 + (s - 1) * self.ceil_mode >= 0 for n, k, s, p, d in sizes)

    def _is_recorded(self, x: Tensor) -> bool:
        """Check x; whether autograd, and no transform of torch.func, records what becomes of it."""
        if not checks.is_traced(x) and not (checks.is_plain(x) and x.dtype in checks.DTYPES):
            raise TypeError(f"x: expected a floating-point tensor [M, C, H, W], got {checks.describe(x)}")
        if x.dim() not in (3, 4):
            hint = "; a sequence [T, N, C, H, W] needs flatten(0, 1)" if x.dim() == 5 else ""
            raise ValueError(f"x: expected [M, C, H, W], got {tuple(x.shape)}{hint}")
        if 0 in x.shape[-3:] or not self._has_room(x):
            raise ValueError(f"x: expected a map with room for the window of {self}, got {tuple(x.shape)}")
        return torch.is_grad_enabled() and x.requires_grad and not transformed(x)


class MaxPool2d(_Pool, tnn.MaxPool2d):
    """torch.nn.MaxPool2d, forward and gradients alike, that keeps its indices (int64, one per output) and not its
    input.

    Behind a neuron the input is nothing that another layer keeps: the neuron recomputes its spikes, and the next
    convolution keeps the pooled ones.
    """

    def __init__(self, kernel_size, stride=None, padding=0, dilation=1, return_indices=False, ceil_mode=False) -> None:
        sizes = _checked(kernel_size, stride, padding, dilation=dilation)
        for name, flag in (("return_indices", return_indices), ("ceil_mode", ceil_mode)):
            checks.boolean(name, flag)
        super().__init__(*sizes, return_indices, ceil_mode)

    def forward(self, x: Tensor) -> Tensor:
        """x [M, C, H, W] -> [M, C, H', W']."""
        if not self._is_recorded(x) or self.return_indices:
            return super().forward(x)
        return _MaxPool.apply(x, *self._geometry(), self.ceil_mode)


class AvgPool2d(_Pool, tnn.AvgPool2d):
    """torch.nn.AvgPool2d, forward and gradients alike, that keeps nothing: not its input either, of which the gradient
    takes the shape alone.

    Its output is no spikes: a convolution that reads it is made with ``spike_input=False``.
    """

    def __init__(
        self, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
    ) -> None:
        sizes = _checked(kernel_size, stride, padding)
        for name, flag in (("ceil_mode", ceil_mode), ("count_include_pad", count_include_pad)):
            checks.boolean(name, flag)
        if divisor_override is not None:
            divisor_override = checks.integer("divisor_override", divisor_override)
        super().__init__(*sizes, ceil_mode, count_include_pad, divisor_override)

    def forward(self, x: Tensor) -> Tensor:
        """x [M, C, H, W] -> [M, C, H', W']."""
        if not self._is_recorded(x):
            return super().forward(x)
        kernel, stride, padding, _ = self._geometry()
        return _AvgPool.apply(x, kernel, stride, padding, self.ceil_mode, self.count_include_pad, self.divisor_override)
