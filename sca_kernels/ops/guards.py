"""What must hold before a kernel takes the address of a tensor.

:func:`guard_vectors` guards every call. The other guards stand before calls that reach an operator through torch's
dispatcher, ``torch.ops.sca_kernels.*`` among them, which anybody can make; :mod:`sca_kernels.functional.arguments` has
checked those of its own. They ask for what memory takes, and convert nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import paths
from ..channels import (
    Channels,
    Geometry,
    active_widths,
    block_shape,
    check_grouped_lists,
    check_values,
    is_depthwise,
    no_room,
    numel,
    output_size,
)
from ..checks import describe, is_plain, same_device
from ..layout import state_dtype
from ..neurons import NEURONS, NeuronConfig
from ..surrogates import TABLE


def guard_vectors(x: Tensor, names: Sequence[str], *vectors: Tensor | None) -> None:
    """Per-channel vectors are contiguous [C], in the state's dtype; the one named mask is bool. All are on
    one device, by then."""
    shape, dtype = x.shape[2:3], state_dtype(x)
    for i, z in enumerate(vectors):
        if z is not None and not (z.dtype is dtype and z.shape == shape and z.is_contiguous()):
            wanted = torch.bool if names[i] == "mask" else dtype
            if z.dtype is not wanted or z.shape != shape or not z.is_contiguous():
                raise ValueError(f"{names[i]}: expected a contiguous {wanted} vector {list(shape)}, got {describe(z)}")


def guard_long(x: Tensor, channels: Tensor | None, names: Sequence[str], *vectors: Tensor | None) -> None:
    """Per-channel vectors are contiguous, in the state's dtype, and [C] or, with a list of channels, longer."""
    shape, dtype = x.shape[2:3], state_dtype(x)
    for i, z in enumerate(vectors):
        if z is None or (z.dtype is dtype and z.is_contiguous() and z.shape == shape):
            continue
        if channels is None or z.dim() != 1 or z.dtype is not dtype or not z.is_contiguous():
            size = f"[{shape[0]}]" if channels is None else f"[{shape[0]}], or longer"
            raise ValueError(f"{names[i]}: expected a contiguous {dtype} vector {size}, got {describe(z)}")


def guard_list_of(x: Tensor, channels: Tensor | None, *vectors: Tensor | None) -> None:
    """A list of x's channels names entries of all vectors that are not as wide as x."""
    if channels is None:
        return
    guard_list("channels", channels)
    if channels.numel() != x.shape[2]:
        raise ValueError(f"channels: expected an index for each of {x.shape[2]} channels, got {describe(channels)}")
    for z in vectors:
        if z is not None and z.numel() != x.shape[2]:
            check_values("channels", channels, z.numel())


def guard_counter(name: str, counter: Tensor | None) -> None:
    if counter is not None and (counter.dtype != torch.int64 or counter.numel() != 1):
        raise ValueError(f"{name}: expected an int64 tensor of one, got {describe(counter)}")


def guard_tensors(names: Sequence[str], arguments: Sequence[object]) -> None:
    """All tensors are plain ones, with memory of their own behind them, and on one device."""
    first = None
    for name, z in zip(names, arguments, strict=True):
        if not isinstance(z, Tensor):
            continue
        if not is_plain(z) or z.is_quantized:
            raise TypeError(f"{name}: expected a dense tensor, got one with layout {z.layout} and dtype {z.dtype}")
        first = first or (z, name)
        same_device(name, z, *first)


def _check(name: str, z: Tensor | None, shape: Sequence[int], dtype: torch.dtype) -> None:
    if z is not None and (tuple(z.shape) != tuple(shape) or z.dtype != dtype):
        raise ValueError(f"{name}: expected {dtype} {tuple(shape)}, got {describe(z)}")


def check_time_steps(time_steps: int, given: int) -> None:
    """Whether an x of so many ``given`` steps can be presented for ``time_steps``."""
    if time_steps < 1 or given not in (1, time_steps):
        raise ValueError(f"time_steps: expected {given} or, with x of one step, any number >= 1, got {time_steps}")


def guard_activation(x: Tensor, time_steps: int) -> None:
    if x.dim() < 3 or x.shape[0] < 1 or x.shape[2] < 1 or not x.is_floating_point():
        raise ValueError(f"x: expected floating-point [T, N, C, *S], at least one step and channel, got {describe(x)}")
    check_time_steps(time_steps, x.shape[0])


def guard_neuron(
    x: Tensor, time_steps: int, rate: Tensor | None, config: NeuronConfig, **states_and_grads: Tensor | None
) -> None:
    """x and all that has its shape; v_init and grad_v are states, grad_spikes is like the spikes, grad_h like the
    potentials at all steps."""
    guard_activation(x, time_steps)
    for name, z in states_and_grads.items():
        if name in ("grad_spikes", "grad_h"):
            dtype = x.dtype if name == "grad_spikes" else state_dtype(x)
            _check(name, z, (time_steps, *x.shape[1:]), dtype)
        else:
            _check(name, z, x.shape[1:], state_dtype(x))
    config.checked()
    if config.surrogate not in TABLE:
        raise ValueError(f"surrogate: expected one of {', '.join(TABLE)}, got {config.surrogate!r}")
    if NEURONS[config.neuron].learnable_leak != (rate is not None):
        raise ValueError(f"rate: expected {'None' if rate is not None else 'a vector'} for neuron {config.neuron!r}")


SUMS = {"spike_count": torch.int64, "membrane_l1": torch.float64, "positions": torch.int64}
"""What activity is added up in: arguments of the operators that record it, and their dtypes."""


def guard_sums(x: Tensor, channels: Tensor | None, **vectors: Tensor | None) -> None:
    """What is changed in place, all of it or none: [C], or of any size with a list of x's channels in it."""
    if channels is not None:
        guard_list("channels", channels)
        if channels.numel() != x.shape[2]:
            raise ValueError(f"channels: expected an index for each of {x.shape[2]} channels, got {describe(channels)}")
    if len({z is None for z in vectors.values()}) > 1:
        raise ValueError(f"{', '.join(vectors)}: expected all or none")
    for name, z in vectors.items():
        if z is None:
            continue
        kind = SUMS.get(name)
        fits = z.dim() == 1 and (z.is_floating_point() if kind is None else z.dtype == kind)
        if not fits or (channels is None and z.numel() != x.shape[2]):
            size = x.shape[2] if channels is None else "any number"
            raise ValueError(f"{name}: expected {kind or 'floating-point'} [{size}], got {describe(z)}")
        if channels is not None:
            check_values("channels", channels, z.numel(), sorted_=False)


def guard_list(name: str, index: Tensor) -> None:
    if index.dim() != 1 or index.dtype != torch.int64 or not index.is_contiguous():
        raise TypeError(f"{name}: expected a contiguous 1-D int64 tensor, got {describe(index)}")


def guard_packed(name: str, packed: Tensor, bits: int) -> None:
    if bits < 0 or packed.dtype != torch.uint8 or packed.shape != ((bits + 7) // 8,):
        raise ValueError(f"{name}: expected uint8 [{(bits + 7) // 8}] for {bits} elements, got {describe(packed)}")


def guard_convolution(
    x: Tensor,
    shape: Sequence[int],
    channels_last: bool,
    dtype: torch.dtype,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    channels: Channels,
    path: str,
) -> list[int]:
    """A convolution of x, itself or its bits, of that shape, layout and dtype; returns height and width of its
    output."""
    if weight.dim() != 4 or min(weight.shape) < 1 or not weight.is_floating_point():
        raise ValueError(f"weight: expected [C_out, C_in / groups, kh, kw], got {describe(weight)}")
    if len(shape) != 4 or min(shape) < 0 or min(shape[1:]) < 1:
        raise ValueError(f"x: expected [M, C, H, W], got shape {tuple(shape)}")
    if x.dtype == torch.uint8:
        guard_packed("x", x, numel(shape))
    else:
        _check("x", x, shape, dtype)
    if not dtype.is_floating_point:
        raise ValueError(f"x: expected a floating-point dtype, got {dtype}")
    for name, least in (("stride", 1), ("padding", 0), ("dilation", 1)):
        value = getattr(geometry, name)
        if len(value) != 2 or min(value) < least:
            raise ValueError(f"{name}: expected two numbers >= {least}, got {list(value)}")
    out, groups = weight.shape[0], geometry.groups
    if groups < 1:
        raise ValueError(f"groups: expected at least 1, got {groups}")
    depthwise = is_depthwise(weight.shape, groups)
    sizes = {"in_channels": weight.shape[1] * groups, "out_channels": out}
    for (name, size), index in zip(sizes.items(), channels, strict=True):
        if index is None:
            continue
        guard_list(name, index)
        check_values(name, index, size)
    if groups > 1:
        check_grouped_lists(channels, depthwise)
    active = active_widths(weight.shape, groups, channels)
    if shape[1] != active[0] or min(active) < 1:
        raise ValueError(f"x: expected {active[0]} channels, got shape {tuple(shape)}")
    if bias is not None:
        _check("bias", bias, (out,), weight.dtype)
    size = output_size(shape, weight.shape, geometry)
    if min(size) < 1:
        raise no_room(shape, weight.shape, geometry)
    if path not in paths.possible(weight.shape, geometry, dtype, channels_last, active):
        raise paths.refusal(path, weight.shape, geometry, dtype, channels_last, active)
    return size


def guard_block(
    block: Tensor | None, weight: Tensor, geometry: Geometry, channels: Channels, dtype: torch.dtype
) -> None:
    """The active block of a weight that was convolved with in a dtype; None: the weight itself was."""
    inputs = None if geometry.groups > 1 else channels.input
    shape = block_shape(weight.shape, Channels(inputs, channels.output))
    if block is None and (shape != tuple(weight.shape) or weight.dtype != dtype):
        raise ValueError(f"block: expected {dtype} {shape}, got None")
    _check("block", block, shape, dtype)
