"""Convolution of the active channels: the choice of its path, and of how its input is kept for the backward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import backends, checks, ops, paths
from ..channels import (
    Channels,
    Geometry,
    active_widths,
    check_grouped_lists,
    narrow,
    no_room,
    output_size,
    storage_order,
)
from ..checks import DTYPES, describe, is_plain
from .arguments import check_backend, check_geometry, check_index, check_like, check_path


def channel_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    in_channels: Tensor | None = None,
    out_channels: Tensor | None = None,
    full_input: bool = False,
    full_output: bool = False,
    spike_input: bool | None = None,
    backend: str | None = None,
    path: str | None = None,
) -> Tensor:
    """2-D convolution that computes active channels alone.

    Equivalent to ``conv2d(x, weight[out_channels][:, in_channels], bias[out_channels])``, with the gradients of weight
    and bias full size and exactly zero for dormant channels. Under autocast it runs in the autocast dtype, as conv2d
    does. Derivatives of any order, in forward mode and by the transforms of torch.func are those of conv2d, and
    computed by it; but the gradient of a weight that was taken from bits is not differentiated again (a RuntimeError
    that names ``spike_input``).

    Args:
        x: [M, A, H, W] or time-major [T, N, A, H, W], A the number of active input channels (all C_in of them with
            ``full_input``).
        weight: [C_out, C_in / groups, kh, kw], full size.
        bias: [C_out], full size, or None.
        stride, padding, dilation: one int or two.
        groups: 1, or any number while all channels are active, or C_in = C_out (depthwise: in_channels must equal
            out_channels).
        in_channels, out_channels: sorted unique int64 indices of the active channels; None = all. Their values are
            looked at once per tensor (and again when it was written to): for a list of one's own on a CUDA device, the
            first call waits for it; those of a :class:`~sca_kernels.nn.ChannelGroup` are known without.
        full_input: x holds all input channels; the active ones alone are read, by way of a copy of them.
        full_output: the result holds all output channels, dormant ones zero.
        spike_input: True: x holds zeros and ones only, ValueError if not; one bit each is kept for the backward pass.
            A GPU is not waited for: there the error comes from a later call that packs or unpacks spikes on it (its own
            backward pass at the earliest), once the device has found another value; until then the result of the
            forward pass is right, the gradient of the weight not. False: x is kept as it is. None: as bits where it
            holds nothing else, which is looked for where that waits for no device (on CPUs, not while compiling) and
            hides behind the rest: where torch's own convolution runs on the whole weight, it would not.
        backend: see :func:`neuron`.
        path: ``gathered`` convolves by torch's own convolution, on gathered weights; ``winograd`` with 4/9 of the
            multiplications (backend cpu; float32, 3x3, groups, stride and dilation 1; Lavin & Gray, CVPR 2016);
            ``implicit`` by kernels that move 16 bytes per access (backend triton; x channels_last; groups 1 or
            depthwise; multiples of 8 active channels, of 4 in float32; float32 as tf32 where ``torch.backends.cudnn``
            allows that, its default). None takes what was measured to be faster (:mod:`sca_kernels.paths`;
            :func:`sca_kernels.nn.explain` tells).

    Returns:
        [M, B, H', W'] or [T, N, B, H', W'], B active output channels (C_out with ``full_output``), in the layout of x.
    """
    if not is_plain(x):
        raise TypeError(f"x: expected a tensor [M, C, H, W] or [T, N, C, H, W], got {describe(x)}")
    if x.dim() not in (4, 5):
        raise ValueError(f"x: expected [M, C, H, W] or [T, N, C, H, W], got {describe(x)}")
    if x.dtype not in DTYPES:
        raise TypeError(f"x: expected a floating-point dtype, got {describe(x)}")
    if not is_plain(weight) or weight.dim() != 4 or 0 in weight.shape:
        raise ValueError(f"weight: expected [C_out, C_in / groups, kh, kw], got {describe(weight)}")
    if bias is not None and (not is_plain(bias) or bias.shape != weight.shape[:1]):
        raise ValueError(f"bias: expected [{weight.shape[0]}], got {describe(bias)}")
    autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
    check_like("weight", weight, x, autocast)
    if bias is not None:
        check_like("bias", bias, x, autocast)
    geometry, depthwise = check_geometry(stride, padding, dilation, groups, weight.shape)
    inputs = weight.shape[1] * geometry.groups
    in_channels = check_index("in_channels", in_channels, inputs, x, "x")
    out_channels = check_index("out_channels", out_channels, weight.shape[0], x, "x")
    if geometry.groups > 1:
        check_grouped_lists(Channels(in_channels, out_channels), depthwise)
    checks.boolean("full_input", full_input)
    checks.boolean("full_output", full_output)
    if spike_input is not None:
        checks.boolean("spike_input", spike_input)
    backend = check_backend(backend)

    time_major = x.dim() == 5
    frames = x.flatten(0, 1) if time_major else x
    expected = inputs if in_channels is None or full_input else in_channels.numel()
    if frames.shape[1] != expected:
        kind = "" if full_input else "active "
        raise ValueError(f"x: expected {expected} {kind}input channels in dimension {x.dim() - 3}, got {describe(x)}")
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
    as_torch = ops.transformed(x, weight, bias)
    if not as_torch:
        path = _path(path, backend, frames, dtype, weight, geometry, Channels(in_channels, out_channels))
    frames = narrow(frames, in_channels)
    if autocast:  # the operator casts of the weight what is active
        frames, bias = frames.to(dtype), None if bias is None else bias.to(weight.dtype)
    if as_torch:
        y, _ = ops.channel_conv2d_by_torch(frames, weight, bias, *geometry, in_channels, out_channels, full_output)
        return y.unflatten(0, x.shape[:2]) if time_major else y
    frames = _dense_frames(frames)
    copied = path == "winograd" and not frames.is_contiguous(memory_format=torch.channels_last)
    if copied:
        frames = frames.contiguous(memory_format=torch.channels_last)
    needed = torch.is_grad_enabled() and weight.requires_grad
    spike_input = False if path == "dense" and spike_input is None else spike_input
    bits = _as_bits(frames, spike_input, backend) if needed else None
    if path == "dense" and bits is None and not backend:
        y = torch.conv2d(frames, weight.to(dtype), None if bias is None else bias.to(dtype), *geometry)
    else:
        choices = full_output, "gathered" if path == "dense" else path, bits, backend
        y, _ = ops.channel_conv2d(frames, weight, bias, *geometry, in_channels, out_channels, *choices)
    y = y.contiguous() if copied else y
    return y.unflatten(0, x.shape[:2]) if time_major else y


def _path(
    path: str | None,
    backend: str,
    frames: Tensor,
    dtype: torch.dtype,
    weight: Tensor,
    geometry: Geometry,
    channels: Channels,
) -> str:
    """The path of a convolution: as named, or as measured among those that it can take, of which ``dense`` is one."""
    check_path(path)
    height, width = output_size(frames.shape, weight.shape, geometry)
    if min(height, width, *frames.shape[2:]) < 1:
        raise no_room(frames.shape, weight.shape, geometry)
    channels_last = frames.is_contiguous(memory_format=torch.channels_last)
    active = active_widths(weight.shape, geometry.groups, channels)
    possible = paths.possible(weight.shape, geometry, dtype, channels_last, active)
    if path is None:
        sizes = weight.shape[1] * geometry.groups, weight.shape[0]
        output = frames.shape[0], height, width
        if not channels_last and not _has_winograd(frames, dtype, backend):
            possible = [name for name in possible if name != "winograd"]
        chosen = paths.measured(frames.device, dtype, sizes, active, possible, output, channels_last).path
        return "gathered" if chosen == "dense" and channels != Channels(None, None) else chosen
    if path not in possible:
        raise paths.refusal(path, weight.shape, geometry, dtype, channels_last, active)
    if path != "gathered" and not torch.compiler.is_compiling():
        found = backends.find(backend, frames.device, dtype)
        if path not in found.paths:
            able = ", ".join(name for name, other in backends.registry().items() if path in other.paths)
            raise ValueError(f"path: {path!r} expected backend {able}, got {found.name!r} for {describe(frames)}")
    return path


def _has_winograd(frames: Tensor, dtype: torch.dtype, backend: str) -> bool:
    """Whether copies to channels_last and back would not be for nothing."""
    if frames.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return "winograd" in backends.find(backend, frames.device, dtype).paths


def _as_bits(frames: Tensor, spike_input: bool | None, backend: str) -> Tensor | None:
    """Frames of zeros and ones as bits, in the order of their memory; None where they are kept as they are."""
    if frames.is_meta or (spike_input is None and (frames.device.type != "cpu" or torch.compiler.is_compiling())):
        spike_input = False
    if spike_input is False:
        return None
    try:
        return ops.pack_spikes(frames.detach().permute(storage_order(frames)).flatten(), backend)
    except ValueError as error:
        if spike_input:
            raise ValueError("x: expected zeros and ones only with spike_input=True, got another value") from error
        return None


def _dense_frames(frames: Tensor) -> Tensor:
    """Frames [M, C, H, W] as they are where dense in either layout, else a copy in the layout they come closest to."""
    if frames.is_contiguous() or frames.is_contiguous(memory_format=torch.channels_last):
        return frames
    last = frames.stride(1) == 1 and frames.shape[1] > 1
    return frames.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
