"""Convolution on the active channels alone: gather the weights, let the library convolve at the active width, scatter
the gradients.

Runs on any device: the convolution itself is torch's (oneDNN, cuDNN). x and y are [M, C, H, W], at the active width or
at full width.
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
    gather: Callable[[Tensor, Channels], Tensor] = gather,
    convolve: Callable[..., Tensor] = torch.conv2d,
) -> Tensor:
    """y = conv2d(x, weight[output][:, input], bias[output]), at full width if asked for; x may have either width. A
    backend may bring its own :func:`gather`, and its own convolution of what is gathered."""
    x = narrow(x, channels.input)
    geometry, channels = _depthwise(geometry, channels)
    if bias is not None and channels.output is not None:
        bias = bias.index_select(0, channels.output)
    y = convolve(x, gather(weight, channels), bias, *geometry)
    return widen(y, channels.output, weight.shape[0]) if full_output else y


def backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    geometry: Geometry,
    channels: Channels,
    needed: Sequence[bool],
    gather: Callable[[Tensor, Channels], Tensor] = gather,
    scatter: Callable[[Tensor, Tensor, Channels], Tensor] = scatter,
    convolve_backward: Callable[..., tuple[Tensor | None, ...]] = torch.ops.aten.convolution_backward,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients for x (as wide as x), weight and bias (full size), exactly zero for dormant channels.

    ``needed`` says which; a backend may bring its own :func:`gather`, :func:`scatter` and convolution.
    """
    grad, inputs, width = narrow(grad, channels.output), channels.input, x.shape[1]
    x = narrow(x, inputs)
    geometry, channels = _depthwise(geometry, channels)
    active = gather(weight, channels)
    g_x, g_weight, g_bias = convolve_backward(
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
    if needed[2]:
        g_bias = widen(g_bias[None], channels.output, weight.shape[0])[0]
    g_x = widen(g_x, inputs, width) if needed[0] else None
    return g_x, g_weight if needed[1] else None, g_bias if needed[2] else None
