"""``sca_kernels::channel_conv2d`` and its backward: a convolution that computes active channels alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends import run
from ..channels import Bits, Channels, Geometry, memory_format, numel, storage_order
from ..checks import describe
from ..reference import channel_conv
from .common import Operator, or_empty
from .guards import guard_block, guard_convolution, guard_packed


def _laid_out(z: Tensor, path: str) -> Tensor:
    """Activations of our own paths are channels_last, also where a single channel leaves a library the choice."""
    return z if path == "gathered" else z.contiguous(memory_format=torch.channels_last)


def _is_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


@Operator
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
    full_output: bool,
    path: str,
    bits: Tensor | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """y [M, C_out, H', W'] in the dtype of x, at the active width unless ``full_output``, and the active block of the
    weight in that dtype, for the backward (empty: that takes the weight itself). x has the active width; weight and
    bias share a dtype, which may be another. ``bits`` (uint8): x in the order of its memory, kept for the backward in
    its place."""
    arguments = x, weight, bias, Geometry(stride, padding, dilation, groups), Channels(in_channels, out_channels)
    y, block = run(backend, "channel_conv2d", x, *arguments, full_output, path)
    return _laid_out(y, path), block


@channel_conv2d.guarded
def _(x, weight, bias, stride, padding, dilation, groups, in_channels, out_channels, full_output, path, bits, backend):
    geometry, channels = Geometry(stride, padding, dilation, groups), Channels(in_channels, out_channels)
    guard_convolution(x, x.shape, _is_last(x), x.dtype, weight, bias, geometry, channels, path)
    if bits is not None:
        guard_packed("bits", bits, x.numel())


@channel_conv2d.fake
def _(
    x,
    weight,
    bias,
    stride,
    padding,
    dilation,
    groups,
    in_channels,
    out_channels,
    full_output,
    path,
    bits,
    backend,
):
    geometry, channels = Geometry(stride, padding, dilation, groups), Channels(in_channels, out_channels)
    y, block = channel_conv.forward(x, weight, bias, geometry, channels, full_output)
    return _laid_out(y, path), or_empty(None if path == "implicit" else block, x)


@Operator
def channel_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    shape: Sequence[int],
    channels_last: bool,
    weight: Tensor,
    block: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    in_channels: Tensor | None,
    out_channels: Tensor | None,
    needed: Sequence[bool],
    path: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """x is the input itself or its bits (uint8), whose shape and layout the next two arguments give; ``block`` is what
    ``channel_conv2d`` has returned with y, None where that was empty."""
    x = Bits(x, shape, channels_last) if x.dtype == torch.uint8 else x
    geometry, channels = Geometry(stride, padding, dilation, groups), Channels(in_channels, out_channels)
    grads = run(backend, "channel_conv2d_backward", grad, grad, x, weight, block, geometry, channels, needed, path)
    return _outputs(grads, weight, path)


@channel_conv2d_backward.guarded
def _(grad, x, shape, channels_last, weight, block, *rest):
    *geometry, in_channels, out_channels, needed, path, _backend = rest
    channels = Channels(in_channels, out_channels)
    last = channels_last if x.dtype == torch.uint8 else _is_last(x)
    dtype = x.dtype
    if dtype == torch.uint8:
        dtype = grad.dtype if path == "implicit" else (weight if block is None else block).dtype
    size = guard_convolution(x, shape, last, dtype, weight, None, Geometry(*geometry), channels, path)
    if path != "implicit":
        guard_block(block, weight, Geometry(*geometry), channels, dtype)
    widths = {weight.shape[0], *([] if out_channels is None else [out_channels.numel()])}
    whole = grad.dim() == 4 and (grad.shape[0], *grad.shape[2:]) == (shape[0], *size) and grad.shape[1] in widths
    if not whole or grad.dtype != dtype:
        width = " or ".join(map(str, sorted(widths)))
        raise ValueError(f"grad: expected {dtype} [{shape[0]}, {width}, {size[0]}, {size[1]}], got {describe(grad)}")
    if len(needed) != 3:
        raise ValueError(f"needed: expected three booleans, for x, weight and bias, got {list(needed)}")


@channel_conv2d_backward.fake
def _(
    grad,
    x,
    shape,
    channels_last,
    weight,
    block,
    stride,
    padding,
    dilation,
    groups,
    in_channels,
    out_channels,
    needed,
    path,
    backend,
):
    if x.dtype == torch.uint8:
        x = Bits(x, shape, channels_last).unflattened(grad.new_empty(numel(shape)))
    geometry, channels = Geometry(stride, padding, dilation, groups), Channels(in_channels, out_channels)
    if path == "implicit":
        block = channel_conv.gathered_block(weight, geometry, channels, grad.dtype)
    grads = channel_conv.backward(grad, x, weight, block, geometry, channels, needed)
    return _outputs(grads, weight, path)


def _outputs(grads: Sequence[Tensor | None], weight: Tensor, path: str) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients, empty where not needed; on our own paths in the layouts of activations and of the weight."""
    g_x, g_weight, g_bias = (weight.new_empty(0) if g is None else g for g in grads)
    if g_x.dim() == 4:
        g_x = _laid_out(g_x, path)
    if path != "gathered" and g_weight.dim() == 4:
        g_weight = g_weight.contiguous(memory_format=memory_format(weight))
    return g_x, g_weight, g_bias


class _Refused(torch.autograd.Function):
    """A weight's gradient that was computed from bits: how it depends on x is not recorded."""

    @staticmethod
    def forward(ctx, g_weight: Tensor) -> Tensor:
        return g_weight.view_as(g_weight)

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "channel_conv2d: the gradient of the weight was taken from spikes that were kept as bits, and can't be "
            "differentiated again. Pass spike_input=False to keep the input as it is."
        )


def _setup(ctx, inputs, output):
    x, weight, bias, *geometry, in_channels, out_channels, _, path, bits, backend = inputs
    block = output[1]
    if block is not None:
        ctx.mark_non_differentiable(block)
        ctx.set_materialize_grads(False)
        block = block if block.dim() == 4 else None  # empty, as the dispatcher has it
    ctx.save_for_backward(x if bits is None else bits, weight, block, in_channels, out_channels)
    ctx.cut = bits is not None and x.requires_grad  # bits don't lead back to where x came from
    ctx.shape, ctx.channels_last = x.shape, storage_order(x) != (0, 1, 2, 3)
    ctx.geometry, ctx.path, ctx.backend, ctx.has_bias = geometry, path, backend, bias is not None


def _backward(ctx, grad, _):
    x, weight, block, in_channels, out_channels = ctx.saved_tensors
    needed = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias and ctx.needs_input_grad[2]]
    saved = x, ctx.shape, ctx.channels_last, weight, block, *ctx.geometry, in_channels, out_channels
    grads = channel_conv2d_backward(grad, *saved, needed, ctx.path, ctx.backend)
    if ctx.cut and needed[1] and torch.is_grad_enabled():
        grads = grads[0], _Refused.apply(grads[1]), grads[2]
    return *(g if want else None for g, want in zip(grads, needed, strict=True)), *[None] * 10


def channel_conv2d_by_torch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    in_channels: Tensor | None,
    out_channels: Tensor | None,
    full_output: bool,
    *_,
) -> tuple[Tensor, Tensor]:
    """``channel_conv2d`` made of torch's own operators: torch differentiates it again and in forward mode, and knows
    its transforms."""
    block = weight
    if out_channels is not None:
        block = block.index_select(0, out_channels)
        bias = None if bias is None else bias.index_select(0, out_channels)
        groups = groups if groups == 1 else out_channels.numel()
    if in_channels is not None and groups == 1:
        block = block.index_select(1, in_channels)
    bias = None if bias is None else bias.to(x.dtype)
    y = torch.conv2d(x, block.to(x.dtype), bias, stride, padding, dilation, groups)
    if full_output and out_channels is not None:
        y = y.new_zeros(y.shape[0], weight.shape[0], *y.shape[2:]).index_copy(1, out_channels, y)
    return y, or_empty(None, x)


def _backward_by_torch(grad, x, shape, channels_last, weight, _, *rest):
    *geometry, in_channels, out_channels, needed, path, backend = rest
    if x.dtype == torch.uint8:
        x = Bits(x, shape, channels_last)
        x = x.unflattened(run(backend, "unpack_spikes", grad, x.packed, numel(shape), grad.dtype))
    geometry, channels = Geometry(*geometry), Channels(in_channels, out_channels)
    block = channel_conv.gathered_block(weight, geometry, channels, grad.dtype)  # leads back to the weight
    return _outputs(channel_conv.backward(grad, x, weight, block, geometry, channels, needed), weight, path)


channel_conv2d.differentiable(_backward, _setup, channel_conv2d_by_torch)
channel_conv2d_backward.differentiable(by_torch=_backward_by_torch)
