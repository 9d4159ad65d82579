"""Max-pooling that keeps no input for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import nn as tnn

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

    def forward(self, x: Tensor) -> Tensor:
        """x [M, C, H, W] -> [M, C, H', W']."""
        if self.return_indices or not (torch.is_grad_enabled() and x.requires_grad) or transformed():
            return super().forward(x)
        pairs = (self.kernel_size, self.stride, self.padding, self.dilation)
        geometry = [[n, n] if isinstance(n, int) else list(n) for n in pairs]
        return _MaxPool.apply(x, *geometry, self.ceil_mode)
