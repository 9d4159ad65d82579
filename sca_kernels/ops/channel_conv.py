"""``sca_kernels::channel_conv2d`` and its backward: a convolution that computes active channels alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends import run
from ..reference import channel_conv
from ..reference.channel_conv import Channels, Geometry


def _storage_order(x: Tensor) -> tuple[int, ...]:
    """Permutation that makes x [M, C, H, W] contiguous in memory for its layout."""
    return (0, 2, 3, 1) if x.is_contiguous(memory_format=torch.channels_last) else (0, 1, 2, 3)


@torch.library.custom_op("sca_kernels::channel_conv2d", mutates_args=())
def channel_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    in_channels: Tensor | None,
    out_channels: Tensor | None,
    pack: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Returns y [M, C_out, H', W'] at the active width, and x as bits (empty unless ``pack``), kept for the backward in
    place of x."""
    arguments = x, weight, bias, Geometry(stride, padding, dilation, groups), Channels(in_channels, out_channels)
    y = run(backend, "channel_conv2d", x, *arguments)
    if not pack:
        return y, x.new_empty(0, dtype=torch.uint8)
    return y, run(backend, "pack_spikes", x, x.permute(_storage_order(x)).flatten())


@channel_conv2d.register_fake
def _(x, weight, bias, stride, padding, dilation, groups, in_channels, out_channels, pack, backend):
    y = channel_conv.forward(
        x, weight, bias, Geometry(stride, padding, dilation, groups), Channels(in_channels, out_channels)
    )
    return y, x.new_empty((x.numel() + 7) // 8 if pack else 0, dtype=torch.uint8)


@torch.library.custom_op("sca_kernels::channel_conv2d_backward", mutates_args=())
def channel_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    shape: Sequence[int],
    channels_last: bool,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    in_channels: Tensor | None,
    out_channels: Tensor | None,
    needed: Sequence[bool],
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """x is the input itself or its bits (uint8), whose shape and layout the next two arguments give."""
    if x.dtype == torch.uint8:
        bits = run(backend, "unpack_spikes", grad, x, _numel(shape), grad.dtype)
        x = _unpacked(bits, shape, channels_last)
    geometry, channels = Geometry(stride, padding, dilation, groups), Channels(in_channels, out_channels)
    grads = run(backend, "channel_conv2d_backward", grad, grad, x, weight, geometry, channels, needed)
    return tuple(grad.new_empty(0) if g is None else g for g in grads)


@channel_conv2d_backward.register_fake
def _(
    grad, x, shape, channels_last, weight, stride, padding, dilation, groups, in_channels, out_channels, needed, backend
):
    if x.dtype == torch.uint8:
        x = _unpacked(grad.new_empty(_numel(shape)), shape, channels_last)
    grads = channel_conv.backward(
        grad, x, weight, Geometry(stride, padding, dilation, groups), Channels(in_channels, out_channels), needed
    )
    return tuple(grad.new_empty(0) if g is None else g for g in grads)


def _numel(shape: Sequence[int]) -> int:
    n = 1
    for size in shape:
        n = n * size
    return n


def _unpacked(flat: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    m, c, h, w = shape
    return flat.view(m, h, w, c).permute(0, 3, 1, 2) if channels_last else flat.view(m, c, h, w)


def _setup(ctx, inputs, output):
    x, weight, bias, stride, padding, dilation, groups, in_channels, out_channels, pack, backend = inputs
    ctx.save_for_backward(output[1] if pack else x, weight, in_channels, out_channels)
    ctx.shape, ctx.channels_last = x.shape, _storage_order(x) != (0, 1, 2, 3)
    ctx.geometry, ctx.backend, ctx.has_bias = (stride, padding, dilation, groups), backend, bias is not None
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _packed):
    x, weight, in_channels, out_channels = ctx.saved_tensors
    needed = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias and ctx.needs_input_grad[2]]
    grads = channel_conv2d_backward(
        grad, x, ctx.shape, ctx.channels_last, weight, *ctx.geometry, in_channels, out_channels, needed, ctx.backend
    )
    return *(g if want else None for g, want in zip(grads, needed, strict=True)), *[None] * 8


channel_conv2d.register_autograd(_backward, setup_context=_setup)
