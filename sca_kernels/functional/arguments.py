"""Checks of what users give to the functions of this package.

Three files check, each at its own boundary:

* :mod:`sca_kernels.checks`: single values, of anything that users call, here, in the modules and in ``sca``.
* this one: the arguments of an operator against each other and against x, in the words that users have for them. What
  comes back is as kernels take it: vectors contiguous and in the state's dtype, defaults filled in.
* :mod:`sca_kernels.ops.guards`: calls of ``torch.ops.sca_kernels.*`` that came by no function of this package, so that
  no kernel reads or writes where nothing is.

Rules that both of the last two need stand below them: :mod:`sca_kernels.channels`, :mod:`sca_kernels.paths`,
``NeuronConfig.checked``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks, paths
from ..channels import Channels, Geometry, check_values, is_depthwise, numel
from ..checks import DTYPES, describe, is_plain, same_device
from ..layout import collapse, dense_strides, state_dtype
from ..neurons import NEURONS, NeuronConfig
from ..ops.guards import check_time_steps
from ..surrogates import resolve
from ..torch_private import has_own_memory


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


# ---- any function


def check_backend(backend: str | None) -> str:
    """The name, empty for the best available; whether it exists and can run shows when it is looked for."""
    if backend is None:
        return ""
    if not isinstance(backend, str):
        raise TypeError(f"backend: expected a name or None, got {describe(backend)}")
    return backend


def check_plain(name: str, z: Tensor) -> None:
    """TypeError unless z is a dense tensor with memory of its own behind it: kernels are given addresses."""
    if not isinstance(z, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {describe(z)}")
    if not has_own_memory(z):
        raise TypeError(
            f"{name}: expected a plain tensor, dense and with memory of its own, got {type(z).__name__} with layout "
            f"{z.layout} on {z.device}"
        )


def is_sealed(p: Tensor) -> bool:
    """Whether p was made in inference mode and can't be changed outside of it; a compiler can't tell."""
    return not torch.compiler.is_compiling() and p.is_inference() and not torch.is_inference_mode_enabled()


# ---- neurons


@_remembered
def check_neuron(
    neuron,
    tau,
    v_threshold,
    v_reset,
    decay_input,
    detach_reset,
    surrogate,
    alpha,
    fire=">=",
    v_subtract=None,
    v_rest=None,
    rate=None,
    decay=None,
) -> NeuronConfig:
    """Check the arguments of :func:`neuron` that don't depend on x; modules call it when they are built."""
    s = resolve(surrogate, alpha)
    named = neuron, tau, v_threshold, v_reset, decay_input, detach_reset
    return NeuronConfig(*named, *s, fire, v_subtract, v_rest, rate, decay).checked()


def apart(v_threshold: float | Tensor) -> tuple[float, Tensor | None]:
    """A threshold as a number of the configuration, and as a tensor that takes its place."""
    return (1.0, v_threshold) if isinstance(v_threshold, Tensor) else (v_threshold, None)


def check_threshold(v_threshold: Tensor | None, x: Tensor) -> Tensor | None:
    """A threshold per channel [C]; None where it is a number."""
    return None if v_threshold is None else _one_or_all("v_threshold", v_threshold, x).contiguous()


def _one_or_all(name: str, p: Tensor, x: Tensor) -> Tensor:
    """One element, or [C], as [C] in the state's dtype."""
    if not is_plain(p) or p.numel() not in (1, x.shape[2]) or not p.is_floating_point():
        raise ValueError(f"{name}: expected a floating-point tensor with 1 or {x.shape[2]} elements, got {describe(p)}")
    same_device(name, p, x)
    return p.to(state_dtype(x)).flatten().expand(x.shape[2])


def check_activation(x: Tensor, time_steps: int | None) -> tuple[Tensor, int]:
    """x [T, N, C, *S] in a layout that kernels take (copied only where its spatial dimensions don't collapse), and
    T."""
    if not is_plain(x):
        raise TypeError(f"x: expected a tensor [T, N, C, *S], got {describe(x)}")
    if x.dim() < 3:
        raise ValueError(f"x: expected at least three dimensions [T, N, C, *S], got {describe(x)}")
    if x.dtype not in DTYPES:
        raise TypeError(f"x: expected a floating-point dtype, got {describe(x)}")
    steps = x.shape[0]
    if steps == 0 or x.shape[2] == 0:
        raise ValueError(f"x: expected at least one time step and one channel, got {describe(x)}")
    if time_steps is not None:
        check_time_steps(checks.integer("time_steps", time_steps), steps)
    strides = collapse(x)
    if strides is None or (strides.s != 1 and strides.c != 1 and numel(x.shape[2:]) > 1):
        x = torch.empty_strided(x.shape, dense_strides(x.shape, False), dtype=x.dtype, device=x.device).copy_(x)
    return x, steps if time_steps is None else int(time_steps)


def check_leak_rate(w: Tensor | None, config: NeuronConfig, x: Tensor) -> Tensor | None:
    """1 / tau per channel [C] from PLIF's w; None for neurons without one."""
    if NEURONS[config.neuron].learnable_leak != (w is not None):
        raise ValueError(
            f"w: expected {'a tensor' if w is None else 'None'} for neuron {config.neuron!r}, got {describe(w)}"
        )
    if w is None:
        return None
    return _one_or_all("w", w, x).sigmoid().contiguous()


def check_v_init(v: Tensor | None, x: Tensor) -> Tensor | None:
    """The first potential [N, C, *S] in the state's dtype."""
    if v is None:
        return None
    if not is_plain(v) or v.shape != x.shape[1:] or not v.is_floating_point():
        raise ValueError(f"v_init: expected a floating-point tensor {tuple(x.shape[1:])}, got {describe(v)}")
    same_device("v_init", v, x)
    return v.to(state_dtype(x))


def check_mask(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """bool [C], contiguous."""
    if mask is None:
        return None
    if not is_plain(mask) or mask.shape != x.shape[2:3] or mask.dtype != torch.bool:
        raise ValueError(f"channel_mask: expected a bool tensor [{x.shape[2]}], got {describe(mask)}")
    same_device("channel_mask", mask, x)
    return mask.contiguous()


# ---- vectors of one number per channel


def _check_vector(name: str, p: Tensor, x: Tensor, channels: Tensor | None = None) -> None:
    fits = is_plain(p) and (p.shape == x.shape[2:3] if channels is None else p.dim() == 1)
    if not fits or not p.is_floating_point():
        size = x.shape[2] if channels is None else "any number"
        raise ValueError(f"{name}: expected a floating-point tensor [{size}], got {describe(p)}")
    same_device(name, p, x)


def check_vector(name: str, p: Tensor | None, x: Tensor, channels: Tensor | None = None) -> Tensor | None:
    """A contiguous vector in the state's dtype, [C] or with ``channels`` of any length; None stays."""
    if p is None:
        return None
    _check_vector(name, p, x, channels)
    return as_state(p, x)


def as_state(p: Tensor, x: Tensor) -> Tensor:
    """p in the state's dtype, contiguous; p itself where it is."""
    dtype = state_dtype(x)
    return p if p.dtype is dtype and p.is_contiguous() else p.to(dtype).contiguous()


# ---- batch norm


def check_channels(channels: Tensor, x: Tensor, vectors: Sequence[Tensor | None]) -> Tensor:
    """Where x's channels stand, each once, in vectors of all; contiguous."""
    if not is_plain(channels) or channels.shape != x.shape[2:3] or channels.dtype != torch.int64:
        raise ValueError(f"channels: expected an int64 tensor [{x.shape[2]}], got {describe(channels)}")
    same_device("channels", channels, x)
    if not torch.compiler.is_compiling() and not channels.is_meta:  # compiled, the operator looks
        sizes = [z.numel() for z in vectors if isinstance(z, Tensor)]
        check_values("channels", channels, min(sizes, default=checks.MOST))
    return channels.contiguous()


def check_batch_norm(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float | Tensor,
    eps: float,
    process_group: Any,
    channels: Tensor | None = None,
) -> tuple[bool, float | Tensor, float]:
    """Whether a batch norm takes the statistics of the batch (in training, and where there are no others), momentum and
    eps; nothing of these fails once the first statistic has moved."""
    if (running_mean is None) != (running_var is None):
        raise ValueError("running_mean, running_var: expected both or neither")
    checks.boolean("training", training)
    if running_mean is not None:
        for name, p in (("running_mean", running_mean), ("running_var", running_var)):
            _check_vector(name, p, x, channels)
            if p.requires_grad:
                raise ValueError(f"{name}: expected a tensor without gradient, got one that requires it")
            if training and not p.is_contiguous() and p.stride(0) == 0:
                raise ValueError(f"{name}: expected memory of its own per channel, got an expanded tensor")
            if training and is_sealed(p):
                raise ValueError(f"{name}: expected a tensor that can be changed, got one made in inference mode")
    if not (type(momentum) is float and -checks.LARGEST <= momentum <= checks.LARGEST):
        if isinstance(momentum, Tensor):
            if not is_plain(momentum) or momentum.dim() or not momentum.is_floating_point():
                raise TypeError(f"momentum: expected a number, or a tensor of one, got {describe(momentum)}")
            same_device("momentum", momentum, x)
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


def check_counter(name: str, counter: Tensor | None, x: Tensor) -> None:
    """An int64 tensor of one that can be increased in place, or None."""
    if counter is None:
        return
    if not is_plain(counter) or counter.dtype != torch.int64 or counter.numel() != 1:
        raise ValueError(f"{name}: expected an int64 tensor of one, got {describe(counter)}")
    same_device(name, counter, x)


def check_process_group(group: Any) -> None:
    """Check what :func:`batch_norm` takes as a group; modules call it when they are built."""
    kind = getattr(torch.distributed, "ProcessGroup", ())  # not in builds without torch.distributed
    if not (group is None or group is True or isinstance(group, kind)):
        raise TypeError(f"process_group: expected a torch.distributed group, True or None, got {checks.shown(group)}")


# ---- convolutions and weights


@_remembered
def check_geometry(
    stride: int | Sequence[int],
    padding: int | Sequence[int],
    dilation: int | Sequence[int],
    groups: int,
    weight: Sequence[int],
) -> tuple[Geometry, bool]:
    """The geometry of a convolution by a weight of this shape, and whether it is depthwise."""
    pairs = (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1))
    geometry = Geometry(*(checks.pair(*pair) for pair in pairs), checks.integer("groups", groups))
    return geometry, is_depthwise(weight, geometry.groups)


def check_like(name: str, p: Tensor, x: Tensor, autocast: bool) -> None:
    """Whether a weight is on the device of x, and in its dtype or one that autocast makes of it."""
    same_device(name, p, x)
    if p.dtype != x.dtype and not (autocast and p.dtype in DTYPES):
        raise TypeError(f"{name}: expected the dtype of x, {x.dtype}, got {p.dtype}")


def check_index(
    name: str, index: Tensor | None, size: int, with_: Tensor, with_name: str, sorted_: bool = True
) -> Tensor | None:
    """A contiguous list of channels in [0, size), on the device of what it selects from."""
    if index is None:
        return None
    if not is_plain(index) or index.dim() != 1 or index.dtype != torch.int64:
        raise TypeError(f"{name}: expected a 1-D int64 tensor or None, got {describe(index)}")
    if index.numel() == 0:  # no address: a kernel would take it for all channels
        raise ValueError(f"{name}: expected at least one channel, got none")
    same_device(name, index, with_, with_name)
    if not torch.compiler.is_compiling():  # compiled, the operator looks
        check_plain(name, index)
        if not index.is_meta:
            check_values(name, index, size, sorted_)
        index = index.resolve_neg() if index.is_neg() else index
    return index.contiguous()


def check_path(path: str | None) -> None:
    """Whether a path is known; whether a convolution can take it shows when it is called."""
    if path is not None:
        checks.one_of("path", path, paths.NEEDS, " or None")


def check_weight(weight: Tensor, in_channels: Tensor | None, out_channels: Tensor | None) -> Channels:
    """The channels of a dense weight's active block, in any order."""
    check_plain("weight", weight)
    if weight.dtype not in DTYPES:
        raise TypeError(f"weight: expected a floating-point tensor, got {describe(weight)}")
    dense = weight.is_contiguous() or (weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last))
    if weight.dim() < 2 or not dense:
        raise ValueError(
            f"weight: expected [C_out, C_in, ...], contiguous or channels_last, got {describe(weight)} "
            f"with strides {weight.stride()}"
        )
    return Channels(
        check_index("in_channels", in_channels, weight.shape[1], weight, "weight", sorted_=False),
        check_index("out_channels", out_channels, weight.shape[0], weight, "weight", sorted_=False),
    )
