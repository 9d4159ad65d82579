"""Convolution on the active channels alone: gather the weights, let the library convolve at the active width, scatter
the gradients.

Runs on any device: the convolution itself is torch's (oneDNN, cuDNN). x and y are [M, C, H, W] at the active width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Geometry(NamedTuple):
    """Stride, padding and dilation per spatial dimension, and the number of groups (1, or depthwise)."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int


class Channels(NamedTuple):
    """Sorted int64 indices of the active input and output channels; None stands for all of them."""

    input: Tensor | None
    output: Tensor | None


def memory_format(weight: Tensor) -> torch.memory_format:
    """Layout of a weight; a block gathered from it and a gradient scattered to it have the same."""
    last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def gather(weight: Tensor, channels: Channels) -> Tensor:
    """Active sub-block of a weight [C_out, C_in, kh, kw]; the weight itself where all channels are active."""
    if channels.input is None and channels.output is None:
        return weight
    block = weight if channels.output is None else weight.index_select(0, channels.output)
    block = block if channels.input is None else block.index_select(1, channels.input)
    return block.contiguous(memory_format=memory_format(weight))


def scatter(block: Tensor, like: Tensor, channels: Channels) -> Tensor:
    """Inverse of :func:`gather`: shaped like the full weight, zero outside the active sub-block."""
    if channels.input is None and channels.output is None:
        return block
    if channels.input is not None:
        rows = block.new_zeros(block.shape[0], *like.shape[1:])
        block = rows.index_copy_(1, channels.input, block.contiguous())
    full = torch.zeros_like(like, memory_format=memory_format(like))
    return full.copy_(block) if channels.output is None else full.index_copy_(0, channels.output, block)


def _depthwise(geometry: Geometry, channels: Channels) -> tuple[Geometry, Channels]:
    """A depthwise weight has one input channel: its pruned form is a depthwise convolution with fewer groups."""
    if geometry.groups == 1 or channels.output is None:
        return geometry, channels
    return geometry._replace(groups=channels.output.numel()), Channels(None, channels.output)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    channels: Channels,
    gather: Callable[[Tensor, Channels], Tensor] = gather,
) -> Tensor:
    """y = conv2d(x, weight[output][:, input], bias[output]); a backend may bring its own :func:`gather`."""
    geometry, channels = _depthwise(geometry, channels)
    if bias is not None and channels.output is not None:
        bias = bias.index_select(0, channels.output)
    return torch.conv2d(x, gather(weight, channels), bias, *geometry)


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    channels: Channels,
    needed: Sequence[bool],
    gather: Callable[[Tensor, Channels], Tensor] = gather,
    scatter: Callable[[Tensor, Tensor, Channels], Tensor] = scatter,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients for x (active width), weight and bias (full size, exactly zero for dormant channels).

    ``needed`` says which; a backend may bring its own :func:`gather` and :func:`scatter`.
    """
    geometry, channels = _depthwise(geometry, channels)
    active = gather(weight, channels)
    g_x, g_weight, g_bias = torch.ops.aten.convolution_backward(
        grad,
        x,
        active,
        [active.shape[0]],
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        False,
        [0, 0],
        geometry.groups,
        list(needed),
    )
    if needed[1]:
        g_weight = scatter(g_weight, weight, channels)
    if needed[2] and channels.output is not None:
        g_bias = g_bias.new_zeros(weight.shape[0]).index_copy_(0, channels.output, g_bias)
    return g_x if needed[0] else None, g_weight if needed[1] else None, g_bias if needed[2] else None
