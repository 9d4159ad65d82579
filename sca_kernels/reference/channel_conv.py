"""Convolution on the active channels alone: gather the weights, let the library convolve at the active width, scatter
the gradients.

Runs on any device: the convolution itself is torch's (oneDNN, cuDNN). x is [M, C, H, W] at the active width, y the same
or at full width. Weight and bias may be of another dtype (master weights in float32): their blocks are cast to that of
x, their gradients back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..channels import Channels, Geometry, gather, narrow, scatter, widen


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
    full_output: bool,
    gather: Callable[..., tuple[Tensor, Tensor | None]] = gather,
    convolve: Callable[..., Tensor] = torch.conv2d,
) -> tuple[Tensor, Tensor | None]:
    """y = conv2d(x, weight[output][:, input], bias[output]), at full width if asked for, and the block of the weight
    that was convolved with (None: the weight itself), for :func:`backward`. A backend may bring its own
    :func:`gather`, and its own convolution of what is gathered."""
    geometry, channels = _depthwise(geometry, channels)
    block, bias = gather(weight, bias, channels, x.dtype)
    y = convolve(x, block, bias, *geometry)
    return widen(y, channels.output, weight.shape[0]) if full_output else y, None if block is weight else block


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    block: Tensor | None,
    geometry: Geometry,
    channels: Channels,
    needed: Sequence[bool],
    scatter: Callable[..., tuple[Tensor | None, Tensor | None]] = scatter,
    convolve_backward: Callable[..., tuple[Tensor | None, ...]] = torch.ops.aten.convolution_backward,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients for x, weight and bias, these two full size and in the weight's dtype, exactly zero for dormant
    channels.

    ``block`` is what :func:`forward` has returned, ``needed`` says which gradients; a backend may bring its own
    :func:`scatter` and convolution.
    """
    grad = narrow(grad, channels.output)
    geometry, channels = _depthwise(geometry, channels)
    block = weight if block is None else block
    g_x, g_weight, g_bias = convolve_backward(
        grad,
        x,
        block,
        [block.shape[0]],
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        False,
        [0, 0],
        geometry.groups,
        list(needed),
    )
    g_weight, g_bias = scatter(g_weight if needed[1] else None, g_bias if needed[2] else None, weight, channels)
    return g_x if needed[0] else None, g_weight, g_bias


def gathered_block(weight: Tensor, geometry: Geometry, channels: Channels, dtype: torch.dtype) -> Tensor:
    """The block that :func:`forward` convolves with, made by torch's own operators."""
    return gather(weight, None, _depthwise(geometry, channels)[1], dtype)[0]
