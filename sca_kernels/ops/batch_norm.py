"""``sca_kernels::batch_norm_forward`` and its backward: training batch norm fused in front of a neuron;
``recorded_batch_norm_forward`` moves running statistics and adds the activity to sums as well.
``batch_norm_inference`` takes given statistics. ``batch_norm_moments``, ``batch_norm_sums`` and ``batch_norm_gradient``
are its parts on one of several processes, between whose sums lies a sum over processes."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..backends import run
from ..channels import at_width
from ..checks import describe
from ..layout import empty_activation, empty_state, state_dtype
from ..neurons import NeuronConfig
from ..reference import batch_norm as by_torch
from ..tracking import Tracking, change
from .common import (
    CONFIG,
    Operator,
    fake_forward,
    fake_gradient,
    forward_outputs,
    not_differentiable,
    or_empty,
    passes_nan,
    seen,
)
from .guards import (
    SUMS,
    guard_activation,
    guard_counter,
    guard_list_of,
    guard_long,
    guard_neuron,
    guard_sums,
    guard_vectors,
)
from .neuron import neuron_forward


@Operator
def batch_norm_forward(
    x: Tensor,
    time_steps: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    rate: Tensor | None,
    threshold: Tensor | None,
    v_init: Tensor | None,
    mask: Tensor | None,
    return_v: bool,
    return_h: bool,
    channels: Tensor | None,
    backend: str,
    *config: NeuronConfig,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Behind the outputs of a neuron stands ``norm`` [4, C]: mean, biased variance, scale, shift. ``channels``: where
    those of x stand in weight and bias, if these are longer."""
    given = x, time_steps, NeuronConfig(*config), weight, bias, eps, rate, v_init, mask, return_v, channels
    return _run(given, threshold, return_h, backend, None)


def _run(
    given: tuple[Any, ...], threshold: Tensor | None, return_h: bool, backend: str, tracking: Tracking | None
) -> tuple[Tensor | None, ...]:
    """Outputs of the operator; what is to be tracked is once they have turned out well."""
    x, _, _, weight, bias, _, rate, _, mask, _, channels = given
    guard_vectors(x, ("rate", "threshold", "mask"), rate, threshold, mask)
    guard_long(x, channels, ("weight", "bias"), weight, bias)
    out, norm = run(backend, "batch_norm_forward", x, *given, tracking, threshold, return_h)
    outputs = forward_outputs(out, x)
    if tracking is not None and not out.has_tracked:
        change(out.spike_count, out.membrane_l1, norm, tracking)
    return *outputs, norm


@batch_norm_forward.guarded
def _(x, time_steps, weight, bias, eps, rate, threshold, v_init, mask, return_v, return_h, channels, backend, *config):
    guard_neuron(x, time_steps, rate, NeuronConfig(*config), v_init=v_init)
    guard_list_of(x, channels, weight, bias)


@batch_norm_forward.fake
def _(x, time_steps, weight, bias, eps, rate, threshold, v_init, mask, return_v, return_h, *rest):
    return *fake_forward(x, time_steps, return_v, return_h), x.new_empty((4, x.shape[2]), dtype=state_dtype(x))


@functools.partial(
    Operator,
    changed=("running_mean", "running_var", "batches", *SUMS),
    plain=("batches", *SUMS, "channels"),
)
def recorded_batch_norm_forward(
    x: Tensor,
    time_steps: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    rate: Tensor | None,
    threshold: Tensor | None,
    v_init: Tensor | None,
    mask: Tensor | None,
    return_v: bool,
    return_h: bool,
    channels: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches: Tensor | None,
    momentum: float,
    momentum_tensor: Tensor | None,
    spike_count: Tensor | None,
    membrane_l1: Tensor | None,
    positions: Tensor | None,
    backend: str,
    *config: NeuronConfig,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Beside: running statistics (None: not tracked), a counter of batches, the weight of this batch in the statistics
    (the tensor, where there is one), and sums of activity (None: not recorded); ``channels``: where those of x stand in
    all of these. See :class:`sca_kernels.tracking.Tracking`."""
    given = x, time_steps, NeuronConfig(*config), weight, bias, eps, rate, v_init, mask, return_v, channels
    tracking = Tracking(
        seen(x, time_steps),
        None if spike_count is None else (spike_count, membrane_l1, positions),
        None if running_mean is None else (running_mean, running_var),
        momentum if momentum_tensor is None else momentum_tensor,
        batches,
        channels,
        running_mean is not None and passes_nan(x.device.type),
    )
    return _run(given, threshold, return_h, backend, tracking)


@recorded_batch_norm_forward.guarded
def _(x, time_steps, weight, bias, eps, rate, threshold, v_init, mask, return_v, return_h, channels, *rest):
    running_mean, running_var, batches, _, _, spike_count, membrane_l1, positions, _, *config = rest
    guard_neuron(x, time_steps, rate, NeuronConfig(*config), v_init=v_init)
    guard_list_of(x, channels, weight, bias)
    guard_sums(x, channels, spike_count=spike_count, membrane_l1=membrane_l1, positions=positions)
    guard_sums(x, channels, running_mean=running_mean, running_var=running_var)
    guard_counter("batches", batches)


@recorded_batch_norm_forward.fake
def _(x, time_steps, weight, bias, eps, rate, threshold, v_init, mask, return_v, return_h, *rest):
    return *fake_forward(x, time_steps, return_v, return_h), x.new_empty((4, x.shape[2]), dtype=state_dtype(x))


@Operator
def batch_norm_inference(
    x: Tensor,
    time_steps: int,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    rate: Tensor | None,
    threshold: Tensor | None,
    v_init: Tensor | None,
    mask: Tensor | None,
    return_v: bool,
    return_h: bool,
    channels: Tensor | None,
    backend: str,
    *config: NeuronConfig,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The outputs of a neuron behind batch norm by given statistics; ``channels``: where those of x stand in these,
    weight and bias, if they are longer."""
    guard_vectors(x, ("rate", "threshold", "mask"), rate, threshold, mask)
    guard_long(x, channels, ("weight", "bias", "mean", "var"), weight, bias, mean, var)
    given = x, time_steps, NeuronConfig(*config), weight, bias, mean, var, eps, rate, v_init, mask, return_v, channels
    return forward_outputs(run(backend, "batch_norm_inference", x, *given, threshold, return_h), x)


@batch_norm_inference.guarded
def _(x, time_steps, weight, bias, mean, var, eps, rate, threshold, v_init, mask, return_v, return_h, channels, *rest):
    guard_neuron(x, time_steps, rate, NeuronConfig(*rest[1:]), v_init=v_init)
    guard_list_of(x, channels, weight, bias, mean, var)


@batch_norm_inference.fake
def _(x, time_steps, weight, bias, mean, var, eps, rate, threshold, v_init, mask, return_v, return_h, *rest):
    return fake_forward(x, time_steps, return_v, return_h)


@Operator
def batch_norm_backward(
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    grad_h: Tensor | None,
    x: Tensor,
    time_steps: int,
    weight: Tensor | None,
    bias: Tensor | None,
    norm: Tensor,
    eps: float,
    rate: Tensor | None,
    threshold: Tensor | None,
    v_init: Tensor | None,
    channels: Tensor | None,
    backend: str,
    *config: NeuronConfig,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    guard_vectors(x, ("rate", "threshold"), rate, threshold)
    guard_long(x, channels, ("weight", "bias"), weight, bias)
    behind = weight, bias, norm, eps, rate, v_init, channels, threshold, grad_h
    return run(backend, "batch_norm_backward", x, grad_spikes, grad_v, x, time_steps, NeuronConfig(*config), *behind)


@batch_norm_backward.guarded
def _(grad_spikes, grad_v, grad_h, x, time_steps, weight, bias, norm, eps, rate, threshold, v_init, channels, *rest):
    like_x = {"v_init": v_init, "grad_v": grad_v, "grad_h": grad_h, "grad_spikes": grad_spikes}
    guard_neuron(x, time_steps, rate, NeuronConfig(*rest[1:]), **like_x)
    guard_list_of(x, channels, weight, bias)
    if norm.shape != (4, x.shape[2]) or norm.dtype != state_dtype(x) or not norm.is_contiguous():
        raise ValueError(f"norm: expected contiguous {state_dtype(x)} [4, {x.shape[2]}], got {describe(norm)}")


@batch_norm_backward.fake
def _(grad_spikes, grad_v, grad_h, x, time_steps, weight, bias, norm, eps, rate, threshold, v_init, *rest):
    return (
        empty_activation(x, x.shape[0]),
        fake_gradient(weight, x),
        fake_gradient(bias, x),
        fake_gradient(rate, x),
        or_empty(None, x) if v_init is None else empty_state(x, state_dtype(x)),
        fake_gradient(threshold, x),
    )


def _setup(ctx, inputs, output):
    x, time_steps, weight, bias, eps, rate, threshold, v_init, _mask, return_v, return_h, channels, *_ = inputs
    ctx.save_for_backward(x, weight, bias, output[5], rate, threshold, v_init, channels)
    ctx.time_steps, ctx.eps, ctx.config, ctx.inputs = time_steps, eps, inputs[-CONFIG:], len(inputs)
    ctx.mark_non_differentiable(*not_differentiable(output, return_v, return_h))
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_spikes, grad_v, _count, _l1, grad_h, _norm):
    x, weight, bias, norm, *own = ctx.saved_tensors
    grads = [None] * ctx.inputs
    if any(g is not None for g in (grad_spikes, grad_v, grad_h)):
        statistics = weight, bias, norm, ctx.eps
        g = batch_norm_backward(grad_spikes, grad_v, grad_h, x, ctx.time_steps, *statistics, *own, *ctx.config)
        grads[0] = g[0]
        rate, threshold, v_init, _ = own
        for slot, given, z in zip((2, 3, 5, 7, 6), (weight, bias, rate, v_init, threshold), g[1:], strict=True):
            grads[slot] = None if given is None else z
    return tuple(grads)


batch_norm_forward.differentiable(_backward, _setup)
recorded_batch_norm_forward.differentiable(_backward, _setup)
batch_norm_backward.no_second_order()


def _inference_by_torch(
    x, time_steps, weight, bias, mean, var, eps, rate, threshold, v_init, mask, return_v, return_h, channels, *rest
) -> tuple[Tensor | None, ...]:
    """The neuron behind a prelude that torch makes of the statistics, and differentiates."""
    weight, bias, mean, var = (at_width(z, channels, x) for z in (weight, bias, mean, var))
    prelude = by_torch.prelude(mean, var, weight, bias, eps)
    given = x, time_steps, *prelude, rate, threshold, v_init, mask, return_v, return_h
    return neuron_forward.overload(*given, *rest)


batch_norm_inference.differentiable(by_torch=_inference_by_torch)


@Operator
def batch_norm_moments(x: Tensor, time_steps: int, backend: str) -> Tensor:
    return run(backend, "moments", x, x, time_steps)


@batch_norm_moments.guarded
def _(x, time_steps, backend):
    guard_activation(x, time_steps)


@batch_norm_moments.fake
def _(x, time_steps, backend):
    return x.new_empty((2, x.shape[2]), dtype=torch.float64)


@Operator
def batch_norm_sums(
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    grad_h: Tensor | None,
    x: Tensor,
    time_steps: int,
    scale: Tensor,
    shift: Tensor,
    center: Tensor,
    rate: Tensor | None,
    threshold: Tensor | None,
    v_init: Tensor | None,
    backend: str,
    *config: NeuronConfig,
) -> Tensor:
    vectors = scale, shift, center, rate
    guard_vectors(x, ("scale", "shift", "center", "rate", "threshold"), *vectors, threshold)
    arguments = grad_spikes, grad_v, x, time_steps, NeuronConfig(*config), *vectors, v_init
    return run(backend, "batch_norm_sums", x, *arguments, threshold, grad_h)


@batch_norm_sums.guarded
def _(grad_spikes, grad_v, grad_h, x, time_steps, scale, shift, center, rate, threshold, v_init, backend, *config):
    like_x = {"v_init": v_init, "grad_v": grad_v, "grad_h": grad_h, "grad_spikes": grad_spikes}
    guard_neuron(x, time_steps, rate, NeuronConfig(*config), **like_x)


@batch_norm_sums.fake
def _(grad_spikes, grad_v, grad_h, x, time_steps, scale, shift, center, rate, threshold, v_init, backend, *config):
    own = (rate is not None) + (threshold is not None)
    return x.new_empty((2 + own, x.shape[2]), dtype=torch.float64)


@Operator
def batch_norm_gradient(
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    grad_h: Tensor | None,
    x: Tensor,
    time_steps: int,
    scale: Tensor,
    shift: Tensor,
    center: Tensor,
    slope: Tensor,
    offset: Tensor,
    rate: Tensor | None,
    threshold: Tensor | None,
    v_init: Tensor | None,
    backend: str,
    *config: NeuronConfig,
) -> tuple[Tensor, Tensor]:
    vectors = scale, shift, center, slope, offset, rate
    guard_vectors(x, ("scale", "shift", "center", "slope", "offset", "rate", "threshold"), *vectors, threshold)
    arguments = grad_spikes, grad_v, x, time_steps, NeuronConfig(*config), *vectors, v_init
    return run(backend, "batch_norm_gradient", x, *arguments, threshold, grad_h)


@batch_norm_gradient.guarded
def _(grad_spikes, grad_v, grad_h, x, time_steps, scale, shift, center, slope, offset, rate, threshold, v_init, *rest):
    like_x = {"v_init": v_init, "grad_v": grad_v, "grad_h": grad_h, "grad_spikes": grad_spikes}
    guard_neuron(x, time_steps, rate, NeuronConfig(*rest[1:]), **like_x)


@batch_norm_gradient.fake
def _(grad_spikes, grad_v, grad_h, x, time_steps, scale, shift, center, slope, offset, rate, threshold, v_init, *rest):
    g_v = or_empty(None, x) if v_init is None else empty_state(x, state_dtype(x))
    return empty_activation(x, x.shape[0]), g_v


def _moments_by_torch(x: Tensor, time_steps: int, backend: str) -> Tensor:
    return by_torch.sums(x)


batch_norm_moments.differentiable(by_torch=_moments_by_torch)
batch_norm_sums.no_second_order()
batch_norm_gradient.no_second_order()
