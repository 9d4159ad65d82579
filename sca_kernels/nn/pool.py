"""Max-pooling that keeps no input for the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import nn as tnn

from .. import checks
from ..ops import transformed


class _MaxPool(torch.autograd.Function):
    """torch's max-pool; of its input, whose gradient depends on the indices alone, only shape and layout are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *geometry: Any) -> Tensor:
        y, indices = torch.ops.aten.max_pool2d_with_indices(x, *geometry)
        ctx.save_for_backward(indices)
        last = x.is_contiguous(memory_format=torch.channels_last)
        ctx.shape, ctx.layout = x.shape, torch.channels_last if last else torch.contiguous_format
        ctx.geometry = geometry
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        x = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.layout)
        g = torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *ctx.geometry, indices)
        return g, *[None] * len(ctx.geometry)


class MaxPool2d(tnn.MaxPool2d):
    """torch.nn.MaxPool2d, forward and gradients alike, that keeps its indices (int64, one per output) and not its
    input.

    Behind a neuron the input is nothing that another layer keeps: the neuron recomputes its spikes, and the next
    convolution keeps the pooled ones.
    """

    def __init__(self, kernel_size, stride=None, padding=0, dilation=1, return_indices=False, ceil_mode=False) -> None:
        stride = kernel_size if stride is None else stride
        pairs = (
            ("kernel_size", kernel_size, 1),
            ("stride", stride, 1),
            ("padding", padding, 0),
            ("dilation", dilation, 1),
        )
        kernel, _, border, _ = (checks.pair(*pair) for pair in pairs)
        if any(2 * zeros > side for zeros, side in zip(border, kernel, strict=True)):
            raise ValueError(f"padding: expected at most half of the kernel {kernel}, got {padding}")
        for name, flag in (("return_indices", return_indices), ("ceil_mode", ceil_mode)):
            checks.boolean(name, flag)
        plain = (z if isinstance(z, (int, Sequence)) else int(z) for z in (kernel_size, stride, padding, dilation))
        super().__init__(*plain, return_indices, ceil_mode)

    def _geometry(self) -> list[list[int]]:
        """Kernel, stride, padding and dilation, two of each."""
        pairs = (self.kernel_size, self.stride, self.padding, self.dilation)
        return [[n, n] if isinstance(n, int) else list(n) for n in pairs]

    def _has_room(self, x: Tensor) -> bool:
        """Whether a window fits in."""
        sizes = zip(x.shape[-2:], *self._geometry(), strict=True)
        # with ceil_mode the last window may begin in the map and end outside
        return all(n + 2 * p - d * (k - 1) - 1 + (s - 1) * self.ceil_mode >= 0 for n, k, s, p, d in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """x [M, C, H, W] -> [M, C, H', W']."""
        if not checks.is_traced(x) and not (checks.is_plain(x) and x.dtype in checks.DTYPES):
            raise TypeError(f"x: expected a floating-point tensor [M, C, H, W], got {checks.describe(x)}")
        if x.dim() not in (3, 4):
            hint = "; a sequence [T, N, C, H, W] needs flatten(0, 1)" if x.dim() == 5 else ""
            raise ValueError(f"x: expected [M, C, H, W], got {tuple(x.shape)}{hint}")
        if 0 in x.shape[-3:] or not self._has_room(x):
            raise ValueError(f"x: expected a map with room for the window of {self}, got {tuple(x.shape)}")
        if self.return_indices or not (torch.is_grad_enabled() and x.requires_grad) or transformed(x):
            return super().forward(x)
        return _MaxPool.apply(x, *self._geometry(), self.ceil_mode)
