"""Checked, documented entry points.

Shapes: activations are time-major ``[T, N, C, *S]`` (T time steps, N samples, C channels, S any number of spatial
sizes), contiguous or channels_last; other layouts are copied once. dtypes: float32, bfloat16, float16 (float64 on the
reference backend); membrane potentials and sums are float32 (float64 for float64 input). Every argument error is a
TypeError or ValueError that names the argument, raised before anything is computed or changed. Tensors are strided: no
sparse or nested ones; of torch.func's transforms, those work that the operators have rules for, and the others are
refused.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import backends, checks, ops, paths
from .channels import Channels, Geometry, check_values, narrow, numel, output_size, same, storage_order
from .checks import describe as _describe
from .checks import is_plain
from .layout import collapse, dense_strides, spatial_size, state_dtype
from .neurons import NeuronConfig
from .ops.common import NotANumber, check_nan, passes_nan
from .reference.batch_norm import prelude as affine_prelude
from .surrogates import Surrogate, resolve
from .sync import synchronized_moments
from .torch_private import has_own_memory

__all__ = [
    "NeuronOutput",
    "NotANumber",
    "batch_norm",
    "batch_norm_lif",
    "batch_norm_neuron",
    "channel_conv2d",
    "check_nan",
    "gather_weight",
    "if_neuron",
    "lif",
    "neuron",
    "pack_spikes",
    "plif",
    "put_weight",
    "unpack_spikes",
]


class NeuronOutput(NamedTuple):
    """What a multi-step neuron returns.

    Attributes:
        spikes: [T, N, C, *S], 0 or 1, in the dtype and memory layout of x.
        v: membrane potential after the last step, [N, C, *S], float32 (float64 for float64 x); None with
            ``return_v=False``.
        spike_count: int64 [C], exact sum of the spikes over T, N and S.
        membrane_l1: float32 [C], sum of ``|v[t] - v_reset|`` after each reset over T, N and S; bit-identical from run
        to run.
    """

    spikes: Tensor
    v: Tensor | None
    spike_count: Tensor
    membrane_l1: Tensor


def neuron(
    x: Tensor,
    neuron: str = "lif",
    *,
    tau: float = 2.0,
    w: Tensor | None = None,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    detach_reset: bool = False,
    surrogate: str | Surrogate = "atan",
    alpha: float | None = None,
    v_init: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    channel_mask: Tensor | None = None,
    time_steps: int | None = None,
    return_v: bool = True,
    backend: str | None = None,
) -> NeuronOutput:
    """All time steps of a spiking neuron in one pass, with per-channel activity (method: Li et al., ICML 2024;
    equations: module ``sca_kernels.neurons``).

    Equivalent to, for each t: ``h = charge(v, x[t] * scale + shift)``; ``s[t] = h >= v_threshold``;
    ``v = v_reset if s[t] else h`` (``v_reset=None``: ``v = h - v_threshold * s[t]``). Only x is kept for the backward
    pass, which recomputes h. Differentiable once and in reverse mode, by torch.func too; a RuntimeError otherwise.

    Args:
        x: input current [T, N, C, *S].
        neuron: "if", "lif" or "plif".
        tau: time constant in steps, > 1; LIF only.
        w: PLIF's parameter, ``1 / tau = sigmoid(w)``; one element, or [C].
        v_threshold: fires where ``h >= v_threshold``.
        v_reset: potential after a spike (hard reset); None subtracts the threshold (soft reset).
        decay_input: whether the input is divided by tau as well.
        detach_reset: whether the gradient ignores the reset's dependence on the spike.
        surrogate: derivative used for the spike: a name of ``sca_kernels.surrogates.TABLE`` or a ``Surrogate``.
        alpha: the surrogate's slope; None takes its default.
        v_init: potential before the first step, [N, C, *S]; None starts from v_reset (0 for a soft reset).
        scale, shift: per-channel affine prelude, [C] each; x itself where None. Differentiable.
        channel_mask: bool [C]; a False channel emits zeros, while its gradient passes as if it emitted
            (straight-through). spike_count and membrane_l1 describe the neuron before this mask.
        time_steps: with x [1, N, C, *S]: present that one step so many times. None: T = x.shape[0].
        return_v: whether the last potential is wanted.
        backend: None for the best available, or the name of one (which then runs or raises).

    Raises:
        TypeError, ValueError: an argument is off; the message names it.
        NotANumber: a potential became NaN, see :class:`check_nan`.
    """
    config = check_neuron(neuron, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha)
    x, steps = _check_input(x, time_steps)
    outputs = ops.neuron_forward(
        x,
        steps,
        _vector("scale", scale, x),
        _vector("shift", shift, x),
        _rate(w, config, x),
        _check_v_init(v_init, x),
        _check_mask(channel_mask, x),
        checks.boolean("return_v", return_v),
        check_backend(backend),
        *config,
    )
    return _output(outputs, return_v)


def lif(x: Tensor, tau: float = 2.0, **arguments) -> NeuronOutput:
    """Leaky integrate-and-fire: :func:`neuron` with ``neuron="lif"``. ``tau`` is the time constant in steps, > 1."""
    return neuron(x, "lif", tau=tau, **arguments)


def if_neuron(x: Tensor, **arguments) -> NeuronOutput:
    """Integrate-and-fire: :func:`neuron` with ``neuron="if"``; tau and decay_input do not apply."""
    return neuron(x, "if", **arguments)


def plif(x: Tensor, w: Tensor, **arguments) -> NeuronOutput:
    """Parametric LIF (Fang et al., ICCV 2021): :func:`neuron` with ``neuron="plif"``, ``1 / tau = sigmoid(w)``, w one
    element or [C]."""
    return neuron(x, "plif", w=w, **arguments)


def batch_norm_neuron(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    channel_mask: Tensor | None = None,
    neuron: str = "lif",
    *,
    tau: float = 2.0,
    w: Tensor | None = None,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    detach_reset: bool = False,
    surrogate: str | Surrogate = "atan",
    alpha: float | None = None,
    v_init: Tensor | None = None,
    time_steps: int | None = None,
    return_v: bool = True,
    process_group=None,
    backend: str | None = None,
) -> NeuronOutput:
    """Batch norm over (T, N, S) and a neuron in one operator; the normalised current is never written to memory.

    Equivalent to ``neuron(torch.nn.functional.batch_norm(x.flatten(0, 1), ...).view_as(x))``. In training (or without
    running statistics) batch statistics are used and the running ones, if given, are updated in place as torch does
    (unbiased variance); otherwise this is the neuron behind the affine prelude that the running statistics give.

    Args:
        x: [T, N, C, *S], a convolution's output; with ``time_steps``, [1, N, C, *S].
        weight, bias: [C] or None (gamma 1, beta 0).
        running_mean, running_var: [C] or None; updated in place when training.
        training: whether to use (and track) batch statistics.
        momentum: weight of the new batch in the running statistics; a number, or a tensor of one on the device of x,
            which is then not waited for.
        eps: added to the variance, > 0.
        process_group: a torch.distributed group (True: the default one) over whose ranks batch statistics are taken.
        channel_mask, and all others: see :func:`neuron`.

    Raises:
        ValueError: also when training with one value per channel, as torch.nn.functional.batch_norm.
    """
    config = check_neuron(neuron, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha)
    x, steps = _check_input(x, time_steps)
    training, momentum, eps = _check_norm(x, running_mean, running_var, training, momentum, eps, process_group)
    weight, bias = _vector("weight", weight, x), _vector("bias", bias, x)
    common = (
        _rate(w, config, x),
        _check_v_init(v_init, x),
        _check_mask(channel_mask, x),
        checks.boolean("return_v", return_v),
        check_backend(backend),
        *config,
    )
    if training:
        count = _count(x, steps, process_group)
        if process_group is not None:
            *moments, count = synchronized_moments(x, count, process_group)
            mean, var = (z.to(state_dtype(x)) for z in moments)
            outputs = ops.neuron_forward(x, steps, *affine_prelude(mean, var, weight, bias, eps), *common)
        elif count == 0:  # nothing to normalise or to track, as in torch
            mean, var = (full((x.shape[2],), dtype=state_dtype(x)) for full in (x.new_zeros, x.new_ones))
            outputs = ops.neuron_forward(x, steps, *affine_prelude(mean, var, weight, bias, eps), *common)
        else:
            *outputs, mean, var = ops.batch_norm_forward(x, steps, weight, bias, eps, *common)
        if running_mean is not None and (process_group is not None or count):
            _track(running_mean, running_var, mean, var, count, momentum)
    else:
        mean, var = _as_state(running_mean, x), _as_state(running_var, x)
        outputs = ops.neuron_forward(x, steps, *affine_prelude(mean, var, weight, bias, eps), *common)
    return _output(outputs, return_v)


def batch_norm_lif(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    channel_mask: Tensor | None = None,
    **lif_arguments,
) -> NeuronOutput:
    """:func:`batch_norm_neuron` with ``neuron="lif"``."""
    statistics = (running_mean, running_var, training, momentum, eps)
    return batch_norm_neuron(x, weight, bias, *statistics, channel_mask, "lif", **lif_arguments)


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    process_group=None,
) -> Tensor:
    """Batch norm over (T, N, S) alone, for a current that something is added to before the neuron.

    Equivalent to ``torch.nn.functional.batch_norm(x.flatten(0, 1), ...).view_as(x)``, which it is on one process.

    Args:
        x: [T, N, C, *S].
        All others: see :func:`batch_norm_neuron`.

    Returns:
        [T, N, C, *S], in the dtype and layout of x.

    Raises:
        TypeError, ValueError: an argument is off; the message names it.
    """
    x, steps = _check_input(x, None)
    training, momentum, eps = _check_norm(x, running_mean, running_var, training, momentum, eps, process_group)
    weight, bias = _vector("weight", weight, x), _vector("bias", bias, x)
    count = _count(x, steps, process_group) if training else None
    if not training or process_group is None:
        mean, var = (None, None) if running_mean is None else (_as_state(running_mean, x), _as_state(running_var, x))
        own = mean is running_mean and var is running_var and not isinstance(momentum, Tensor)
        own = own and not passes_nan(x.device.type)
        own = own and (mean is None or not (_is_negated(mean) or _is_negated(var)))
        apart = training and running_mean is not None and not (own and count)
        if apart:  # torch moves none of another dtype, and none by a tensor: with momentum 1 it gives the batch's
            mean, var = torch.zeros_like(mean), torch.ones_like(var)
        weighted = 1.0 if apart else momentum
        on_cudnn = torch.backends.cudnn.enabled
        y = torch.batch_norm(x.flatten(0, 1), weight, bias, mean, var, training, weighted, eps, on_cudnn)
        if apart and count:
            _move(running_mean, running_var, mean, var, momentum)
        return y.unflatten(0, x.shape[:2])
    *moments, count = synchronized_moments(x, count, process_group)
    mean, var = (z.to(state_dtype(x)) for z in moments)
    scale, shift = (z.view(-1, *[1] * (x.dim() - 3)) for z in affine_prelude(mean, var, weight, bias, eps))
    y = (x * scale + shift).to(x.dtype)
    if running_mean is not None:
        _track(running_mean, running_var, mean, var, count, momentum)
    return y


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
        full_input: x holds all input channels; the active ones alone are read.
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
            ``implicit`` by kernels that read and write x and the result through the index lists (backend triton; x
            channels_last; groups 1 or depthwise; float32 as tf32 where ``torch.backends.cudnn`` allows that, its
            default). None takes what was measured to be faster (:mod:`sca_kernels.paths`;
            :func:`sca_kernels.nn.explain` tells).

    Returns:
        [M, B, H', W'] or [T, N, B, H', W'], B active output channels (C_out with ``full_output``), in the layout of x.
    """
    if not is_plain(x):
        raise TypeError(f"x: expected a tensor [M, C, H, W] or [T, N, C, H, W], got {_describe(x)}")
    if x.dim() not in (4, 5):
        raise ValueError(f"x: expected [M, C, H, W] or [T, N, C, H, W], got {_describe(x)}")
    if x.dtype not in _DTYPES:
        raise TypeError(f"x: expected a floating-point dtype, got {_describe(x)}")
    if not is_plain(weight) or weight.dim() != 4 or 0 in weight.shape:
        raise ValueError(f"weight: expected [C_out, C_in / groups, kh, kw], got {_describe(weight)}")
    if bias is not None and (not is_plain(bias) or bias.shape != weight.shape[:1]):
        raise ValueError(f"bias: expected [{weight.shape[0]}], got {_describe(bias)}")
    autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
    _check_like("weight", weight, x, autocast)
    if bias is not None:
        _check_like("bias", bias, x, autocast)
    geometry = _check_geometry(stride, padding, dilation, groups)
    groups = geometry.groups
    if weight.shape[0] % groups:
        raise ValueError(f"groups: expected a divisor of the {weight.shape[0]} output channels, got {groups}")
    depthwise = groups > 1 and weight.shape[1] == 1 and weight.shape[0] == groups
    sizes = {"in_channels": weight.shape[1] * groups, "out_channels": weight.shape[0]}
    in_channels = _check_index("in_channels", in_channels, sizes["in_channels"], x, "x")
    out_channels = _check_index("out_channels", out_channels, sizes["out_channels"], x, "x")
    for name, index in (("in_channels", in_channels), ("out_channels", out_channels)):
        if index is not None and groups > 1 and not depthwise:
            raise ValueError(
                f"{name}: expected None for a grouped, not depthwise convolution, got {index.numel()} indices"
            )
    if depthwise and not _same_index(in_channels, out_channels):
        raise ValueError("in_channels, out_channels: expected the same indices for a depthwise convolution")
    checks.boolean("full_input", full_input)
    checks.boolean("full_output", full_output)
    if spike_input is not None:
        checks.boolean("spike_input", spike_input)
    backend = check_backend(backend)

    time_major = x.dim() == 5
    frames = x.flatten(0, 1) if time_major else x
    expected = sizes["in_channels"] if in_channels is None or full_input else in_channels.numel()
    if frames.shape[1] != expected:
        kind = "" if full_input else "active "
        raise ValueError(f"x: expected {expected} {kind}input channels in dimension {x.dim() - 3}, got {_describe(x)}")
    dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
    as_torch = ops.transformed()
    if not as_torch:
        path = _path(path, backend, frames, dtype, weight, geometry, Channels(in_channels, out_channels))
        if path != "implicit":
            frames = narrow(frames, in_channels)
    if autocast:
        frames, weight, bias = frames.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if as_torch:
        y = ops.channel_conv2d_by_torch(frames, weight, bias, *geometry, in_channels, out_channels, full_output)
        return y.unflatten(0, x.shape[:2]) if time_major else y
    frames = _dense_frames(frames)
    copied = path == "winograd" and not frames.is_contiguous(memory_format=torch.channels_last)
    if copied:
        frames = frames.contiguous(memory_format=torch.channels_last)
    needed = torch.is_grad_enabled() and weight.requires_grad
    spike_input = False if path == "dense" and spike_input is None else spike_input
    bits = _as_bits(frames, spike_input, backend) if needed else None
    if path == "dense" and bits is None and not backend:
        y = torch.conv2d(frames, weight, bias, *geometry)
    else:
        choices = full_output, "gathered" if path == "dense" else path, bits, backend
        y = ops.channel_conv2d(frames, weight, bias, *geometry, in_channels, out_channels, *choices)
    y = y.contiguous() if copied else y
    return y.unflatten(0, x.shape[:2]) if time_major else y


def gather_weight(
    weight: Tensor, in_channels: Tensor | None = None, out_channels: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """``weight[out_channels][:, in_channels]`` in the layout of the weight; not differentiable.

    Args:
        weight: dense [C_out, C_in, ...], contiguous or channels_last.
        in_channels, out_channels: unique int64 indices on its device, at least one; None = all.
        backend: see :func:`neuron`.

    Returns:
        A new tensor; the weight itself where both are None.

    Raises:
        TypeError, ValueError: an argument is off; the message names it.
    """
    channels = _check_weight(weight, in_channels, out_channels)
    found = backends.find(check_backend(backend), weight.device, weight.dtype)
    return found.gather_weight(weight.detach().resolve_neg(), channels)


def put_weight(
    block: Tensor,
    weight: Tensor,
    in_channels: Tensor | None = None,
    out_channels: Tensor | None = None,
    backend: str | None = None,
) -> None:
    """Write what :func:`gather_weight` reads, in place: ``weight[out_channels][:, in_channels] = block``.

    Args:
        block: [B, A, ...] in the weight's dtype.
        All others: see :func:`gather_weight`.

    Raises:
        TypeError, ValueError: an argument is off; the message names it, and nothing is written.
    """
    channels = _check_weight(weight, in_channels, out_channels)
    _plain("block", block)
    lists = zip(weight.shape[:2], channels[::-1], strict=True)
    expected = (*(size if index is None else index.numel() for size, index in lists), *weight.shape[2:])
    if not is_plain(block) or block.shape != expected or block.dtype != weight.dtype or block.device != weight.device:
        raise ValueError(f"block: expected {weight.dtype} {expected} on {weight.device}, got {_describe(block)}")
    if _is_sealed(weight):
        raise ValueError("weight: expected a tensor that can be changed, got one made in inference mode")
    found = backends.find(check_backend(backend), weight.device, weight.dtype)
    with torch.no_grad():
        full = weight.resolve_neg() if weight.is_neg() else weight  # lazily negated: by way of a copy
        found.put_weight(block.resolve_neg().detach(), full.detach(), channels)
        if full is not weight:
            weight.copy_(full)
        if torch.compiler.is_compiling() or not weight.is_inference():  # such a weight has no version
            torch.autograd.graph.increment_version(weight)


def pack_spikes(s: Tensor, backend: str | None = None) -> Tensor:
    """Spikes as bits: uint8 [ceil(numel / 8)], bit i of byte j is element 8 j + i in row-major order. ValueError if a
    value is neither 0 nor 1; on a GPU, which is not waited for, from a later call that packs or unpacks."""
    if not is_plain(s) or s.dtype not in _DTYPES or s.is_meta:
        raise TypeError(f"s: expected a floating-point tensor of zeros and ones, got {_describe(s)}")
    backend = check_backend(backend)
    try:
        return ops.pack_spikes(s.detach(), backend)
    except ValueError as error:
        if not str(error).startswith("spikes:"):
            raise
        raise ValueError("s: expected zeros and ones only, got another value") from None


def unpack_spikes(
    packed: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32, backend: str | None = None
) -> Tensor:
    """Inverse of :func:`pack_spikes`: a contiguous tensor of that shape and dtype.

    Raises:
        TypeError, ValueError: an argument is off; the message names it.
    """
    if not is_plain(packed) or packed.dtype != torch.uint8:
        raise TypeError(f"packed: expected a uint8 tensor, got {_describe(packed)}")
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise TypeError(f"shape: expected a sequence of sizes, got {_describe(shape)}")
    shape = [checks.integer("shape", size, 0, 2**62) for size in shape]
    if not isinstance(dtype, torch.dtype) or dtype not in _DTYPES:
        raise TypeError(f"dtype: expected a floating-point dtype, got {checks.shown(dtype)}")
    size = numel(shape)
    if packed.shape != ((size + 7) // 8,):
        raise ValueError(f"packed: expected uint8 [{(size + 7) // 8}] for shape {shape}, got {_describe(packed)}")
    return ops.unpack_spikes(packed, size, dtype, check_backend(backend)).view(shape)


# --- checks --------------------------------------------------------------------------------


_DTYPES = checks.DTYPES


def _remembered(check: Callable[..., Any]) -> Callable[..., Any]:
    """The same check, whose answers are kept, the last 256 of them: a layer asks at every call, and always the same. A
    compiler asks the check itself."""
    kept = functools.lru_cache(maxsize=256, typed=True)(check)

    @functools.wraps(check)
    def ask(*arguments):
        if torch.compiler.is_compiling():
            return check(*arguments)
        try:
            return kept(*arguments)
        except TypeError:  # the check's own, or of what can't be looked up
            return check(*arguments)

    return ask


@_remembered
def check_neuron(neuron, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha) -> NeuronConfig:
    """Check the arguments of :func:`neuron` that don't depend on x; modules call it when they are built."""
    s = resolve(surrogate, alpha)
    return NeuronConfig(neuron, tau, v_threshold, v_reset, decay_input, detach_reset, *s).checked()


def check_backend(backend: str | None) -> str:
    """The name, empty for the best available; whether it exists and can run shows when it is looked for."""
    if backend is None:
        return ""
    if not isinstance(backend, str):
        raise TypeError(f"backend: expected a name or None, got {_describe(backend)}")
    return backend


def _check_input(x: Tensor, time_steps: int | None) -> tuple[Tensor, int]:
    """x in a layout that kernels take (copied only where its spatial dimensions don't collapse), and T."""
    if not is_plain(x):
        raise TypeError(f"x: expected a tensor [T, N, C, *S], got {_describe(x)}")
    if x.dim() < 3:
        raise ValueError(f"x: expected at least three dimensions [T, N, C, *S], got {_describe(x)}")
    if x.dtype not in _DTYPES:
        raise TypeError(f"x: expected a floating-point dtype, got {_describe(x)}")
    steps = x.shape[0]
    if steps == 0 or x.shape[2] == 0:
        raise ValueError(f"x: expected at least one time step and one channel, got {_describe(x)}")
    if time_steps is not None and (checks.integer("time_steps", time_steps) != steps != 1):
        raise ValueError(f"time_steps: expected {steps} or, with x of one step, any number >= 1, got {time_steps}")
    strides = collapse(x)
    if strides is None or (strides.s != 1 and strides.c != 1 and numel(x.shape[2:]) > 1):
        x = torch.empty_strided(x.shape, dense_strides(x.shape, False), dtype=x.dtype, device=x.device).copy_(x)
    return x, steps if time_steps is None else int(time_steps)


def _check_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float | Tensor,
    eps: float,
    process_group: Any,
) -> tuple[bool, float | Tensor, float]:
    """Whether a batch norm takes the statistics of the batch (in training, and where there are no others), momentum and
    eps; nothing of these fails once the first statistic has moved."""
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean, running_var: expected both or neither")
    checks.boolean("training", training)
    if running_mean is not None:
        for name, p in (("running_mean", running_mean), ("running_var", running_var)):
            _check_vector(name, p, x)
            if p.requires_grad:
                raise ValueError(f"{name}: expected a tensor without gradient, got one that requires it")
            if training and not p.is_contiguous() and p.stride(0) == 0:
                raise ValueError(f"{name}: expected memory of its own per channel, got an expanded tensor")
            if training and _is_sealed(p):
                raise ValueError(f"{name}: expected a tensor that can be changed, got one made in inference mode")
    if not (type(momentum) is float and -checks.LARGEST <= momentum <= checks.LARGEST):
        if isinstance(momentum, Tensor):
            if not is_plain(momentum) or momentum.dim() or not momentum.is_floating_point():
                raise TypeError(f"momentum: expected a number, or a tensor of one, got {_describe(momentum)}")
            _check_device("momentum", momentum, x)
        else:
            momentum = float(checks.number("momentum", momentum))
    uses_batch = training or running_mean is None
    if not (type(eps) is float and 0 < eps <= 1):
        eps = float(checks.number("eps", eps))
        if eps < 0 or (uses_batch and eps == 0):  # torch's rule
            raise ValueError(f"eps: expected a number > 0 (>= 0 with running statistics), got {eps}")
    if process_group is not None:
        check_process_group(process_group)
        if uses_batch and not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise ValueError("process_group: expected None, since torch.distributed is not initialised")
    return uses_batch, momentum, eps


def _is_negated(p: Tensor) -> bool:
    """Whether p lies in memory with the other sign, as torch's own batch norm does not notice."""
    return not torch.compiler.is_compiling() and p.is_neg()


def _is_sealed(p: Tensor) -> bool:
    """Whether p was made in inference mode and can't be changed outside of it; a compiler can't tell."""
    return not torch.compiler.is_compiling() and p.is_inference() and not torch.is_inference_mode_enabled()


def check_process_group(group: Any) -> None:
    """Check what :func:`batch_norm` takes as a group; modules call it when they are built."""
    kind = getattr(torch.distributed, "ProcessGroup", ())  # not in builds without torch.distributed
    if not (group is None or group is True or isinstance(group, kind)):
        raise TypeError(f"process_group: expected a torch.distributed group, True or None, got {checks.shown(group)}")


def _count(x: Tensor, steps: int, process_group: Any) -> int:
    """Values per channel on this rank."""
    count = steps * x.shape[1] * spatial_size(x)
    if count == 1 and process_group is None:
        raise ValueError(f"x: expected more than 1 value per channel when training, got shape {tuple(x.shape)}")
    return count


def _track(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, count: int | Tensor, momentum: float | Tensor
) -> None:
    """Move running statistics towards those of a batch of ``count`` values per channel, in place, as torch does."""
    others = (count - 1).clamp(min=1) if isinstance(count, Tensor) else max(count - 1, 1)
    _move(running_mean, running_var, mean, var * (count / others), momentum)


@torch.no_grad()
def _move(running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float | Tensor) -> None:
    """Move running statistics towards others, in place; in the wider dtype of both. Where NaN may pass, what is not
    finite moves nothing."""
    finite = mean.isfinite() & var.isfinite() if passes_nan(mean.device.type) else None
    for running, new in ((running_mean, mean), (running_var, var)):
        new = new if finite is None else torch.where(finite, new, running.to(new.dtype))
        weight = momentum.to(new.dtype) if isinstance(momentum, Tensor) else momentum
        if running.dtype == new.dtype:
            running.lerp_(new, weight)
        else:
            running.copy_(torch.lerp(running.to(new.dtype), new, weight))


def _check_like(name: str, p: Tensor, x: Tensor, autocast: bool) -> None:
    _check_device(name, p, x)
    if p.dtype != x.dtype and not (autocast and p.dtype in _DTYPES):
        raise TypeError(f"{name}: expected the dtype of x, {x.dtype}, got {p.dtype}")


def _check_vector(name: str, p: Tensor, x: Tensor) -> None:
    if not is_plain(p) or p.shape != x.shape[2:3] or not p.is_floating_point():
        raise ValueError(f"{name}: expected a floating-point tensor [{x.shape[2]}], got {_describe(p)}")
    _check_device(name, p, x)


def _vector(name: str, p: Tensor | None, x: Tensor) -> Tensor | None:
    """A contiguous [C] vector in the state's dtype; None stays."""
    if p is None:
        return None
    _check_vector(name, p, x)
    return _as_state(p, x)


def _as_state(p: Tensor, x: Tensor) -> Tensor:
    """p in the state's dtype, contiguous; p itself where it is."""
    dtype = state_dtype(x)
    return p if p.dtype is dtype and p.is_contiguous() else p.to(dtype).contiguous()


def _check_device(name: str, p: Tensor, x: Tensor, like: str = "x") -> None:
    if p.device != x.device:
        raise ValueError(f"{name}: expected a tensor on {x.device}, where {like} is, got one on {p.device}")


def _rate(w: Tensor | None, config: NeuronConfig, x: Tensor) -> Tensor | None:
    """1 / tau per channel from PLIF's w."""
    if (config.neuron == "plif") != (w is not None):
        raise ValueError(
            f"w: expected {'a tensor' if w is None else 'None'} for neuron {config.neuron!r}, got {_describe(w)}"
        )
    if w is None:
        return None
    if not is_plain(w) or w.numel() not in (1, x.shape[2]) or not w.is_floating_point():
        raise ValueError(f"w: expected a floating-point tensor with 1 or {x.shape[2]} elements, got {_describe(w)}")
    _check_device("w", w, x)
    return w.to(state_dtype(x)).sigmoid().flatten().expand(x.shape[2]).contiguous()


def _check_v_init(v: Tensor | None, x: Tensor) -> Tensor | None:
    if v is None:
        return None
    if not is_plain(v) or v.shape != x.shape[1:] or not v.is_floating_point():
        raise ValueError(f"v_init: expected a floating-point tensor {tuple(x.shape[1:])}, got {_describe(v)}")
    _check_device("v_init", v, x)
    return v.to(state_dtype(x))


def _check_mask(mask: Tensor | None, x: Tensor) -> Tensor | None:
    if mask is None:
        return None
    if not is_plain(mask) or mask.shape != x.shape[2:3] or mask.dtype != torch.bool:
        raise ValueError(f"channel_mask: expected a bool tensor [{x.shape[2]}], got {_describe(mask)}")
    _check_device("channel_mask", mask, x)
    return mask.contiguous()


def _check_weight(weight: Tensor, in_channels: Tensor | None, out_channels: Tensor | None) -> Channels:
    _plain("weight", weight)
    if weight.dtype not in _DTYPES:
        raise TypeError(f"weight: expected a floating-point tensor, got {_describe(weight)}")
    dense = weight.is_contiguous() or (weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last))
    if weight.dim() < 2 or not dense:
        raise ValueError(
            f"weight: expected [C_out, C_in, ...], contiguous or channels_last, got {_describe(weight)} "
            f"with strides {weight.stride()}"
        )
    lists = []
    sizes = (("in_channels", in_channels, weight.shape[1]), ("out_channels", out_channels, weight.shape[0]))
    for name, index, size in sizes:
        lists.append(_check_index(name, index, size, weight, "weight", sorted_=False))
    return Channels(*lists)


def _plain(name: str, z: Tensor) -> None:
    """TypeError unless z is a dense tensor with memory of its own behind it: kernels are given addresses."""
    if not isinstance(z, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {_describe(z)}")
    if not has_own_memory(z):
        raise TypeError(
            f"{name}: expected a plain tensor, dense and with memory of its own, got {type(z).__name__} with layout "
            f"{z.layout} on {z.device}"
        )


def _check_index(
    name: str, index: Tensor | None, size: int, with_: Tensor, with_name: str, sorted_: bool = True
) -> Tensor | None:
    """A contiguous list of channels in [0, size), on the device of what it selects from."""
    if index is None:
        return None
    if not is_plain(index) or index.dim() != 1 or index.dtype != torch.int64:
        raise TypeError(f"{name}: expected a 1-D int64 tensor or None, got {_describe(index)}")
    if index.numel() == 0:  # no address: a kernel would take it for all channels
        raise ValueError(f"{name}: expected at least one channel, got none")
    _check_device(name, index, with_, with_name)
    if not torch.compiler.is_compiling():  # compiled, the operator looks
        _plain(name, index)
        if not index.is_meta:
            check_values(name, index, size, sorted_)
        index = index.resolve_neg() if index.is_neg() else index
    return index.contiguous()


def _same_index(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.compiler.is_compiling() or a.is_meta or same(a, b)


def check_path(path: str | None) -> None:
    """Whether a path is known; whether a convolution can take it shows when it is called."""
    if path is not None:
        checks.one_of("path", path, paths.NEEDS, " or None")


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
        kernel = tuple(weight.shape[2:])
        raise ValueError(f"x: expected room for a kernel of {kernel}, {geometry}, got {_describe(frames)}")
    channels_last = frames.is_contiguous(memory_format=torch.channels_last)
    possible = paths.possible(weight.shape, geometry, dtype, channels_last)
    if path is None:
        sizes = weight.shape[1] * geometry.groups, weight.shape[0]
        active = [size if index is None else index.numel() for size, index in zip(sizes, channels, strict=True)]
        output = frames.shape[0], height, width
        if not channels_last and not _has_winograd(frames, dtype, backend):
            possible = [name for name in possible if name != "winograd"]
        chosen = paths.measured(frames.device, dtype, sizes, active, possible, output, channels_last).path
        return "gathered" if chosen == "dense" and channels != Channels(None, None) else chosen
    if path not in possible:
        kernel = "x".join(map(str, weight.shape[2:]))
        raise ValueError(
            f"path: {path!r} expected {paths.NEEDS[path]}; got {dtype}, strides {frames.stride()}, a {kernel} kernel, "
            f"{geometry}"
        )
    if path != "gathered" and not torch.compiler.is_compiling():
        found = backends.find(backend, frames.device, dtype)
        if path not in found.paths:
            able = ", ".join(name for name, other in backends.registry().items() if path in other.paths)
            raise ValueError(f"path: {path!r} expected backend {able}, got {found.name!r} for {_describe(frames)}")
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


@_remembered
def _check_geometry(
    stride: int | Sequence[int], padding: int | Sequence[int], dilation: int | Sequence[int], groups: int
) -> Geometry:
    pairs = (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1))
    return Geometry(*(checks.pair(*pair) for pair in pairs), checks.integer("groups", groups))


def _dense_frames(frames: Tensor) -> Tensor:
    """Frames [M, C, H, W] as they are where dense in either layout, else a copy in the layout they come closest to."""
    if frames.is_contiguous() or frames.is_contiguous(memory_format=torch.channels_last):
        return frames
    last = frames.stride(1) == 1 and frames.shape[1] > 1
    return frames.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def _output(outputs: Sequence[Tensor], return_v: bool) -> NeuronOutput:
    spikes, v, count, l1 = outputs
    return NeuronOutput(spikes, v if return_v else None, count, l1)
