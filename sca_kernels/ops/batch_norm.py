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
    v_init: Tensor | None,
    mask: Tensor | None,
    return_v: bool,
    channels: Tensor | None,
    backend: str,
    neuron: str,
    tau: float,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
    detach_reset: bool,
    surrogate: str,
    alpha: float,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Behind the outputs of a neuron stands ``norm`` [4, C]: mean, biased variance, scale, shift. ``channels``: where
    those of x stand in weight and bias, if these are longer."""
    config = NeuronConfig(neuron, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha, beta)
    arguments = x, time_steps, config, weight, bias, eps, rate, v_init, mask, return_v, channels
    return _run(arguments, backend, None)


def _run(arguments: tuple[Any, ...], backend: str, tracking: Tracking | None) -> tuple[Tensor | None, ...]:
    """Outputs of the operator; what is to be tracked is once they have turned out well."""
    x, _, _, weight, bias, _, rate, _, mask, _, channels = arguments
    guard_vectors(x, ("rate", "mask"), rate, mask)
    guard_long(x, channels, ("weight", "bias"), weight, bias)
    out, norm = run(backend, "batch_norm_forward", x, *arguments, tracking)
    outputs = forward_outputs(out, x)
    if tracking is not None and not out.has_tracked:
        change(out.spike_count, out.membrane_l1, norm, tracking)
    return *outputs, norm


@batch_norm_forward.guarded
def _(x, time_steps, weight, bias, eps, rate, v_init, mask, return_v, channels, backend, *config):
    guard_neuron(x, time_steps, rate, NeuronConfig(*config), v_init=v_init)
    guard_list_of(x, channels, weight, bias)


@batch_norm_forward.fake
def _(x, time_steps, weight, bias, eps, rate, v_init, mask, return_v, channels, backend, *config):
    return *fake_forward(x, time_steps, return_v), x.new_empty((4, x.shape[2]), dtype=state_dtype(x))


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
    v_init: Tensor | None,
    mask: Tensor | None,
    return_v: bool,
    channels: Tensor | None,
    backend: str,
    neuron: str,
    tau: float,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
    detach_reset: bool,
    surrogate: str,
    alpha: float,
    beta: float,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches: Tensor | None,
    momentum: float,
    momentum_tensor: Tensor | None,
    spike_count: Tensor | None,
    membrane_l1: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Behind beta: running statistics (None: not tracked), a counter of batches, the weight of this batch in the
    statistics (the tensor, where there is one), and sums of activity (None: not recorded); ``channels``: where those of
    x stand in all of these. See :class:`sca_kernels.tracking.Tracking`."""
    config = NeuronConfig(neuron, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha, beta)
    arguments = x, time_steps, config, weight, bias, eps, rate, v_init, mask, return_v, channels
    tracking = Tracking(
        seen(x, time_steps),
        None if spike_count is None else (spike_count, membrane_l1, positions),
        None if running_mean is None else (running_mean, running_var),
        momentum if momentum_tensor is None else momentum_tensor,
        batches,
        channels,
        running_mean is not None and passes_nan(x.device.type),
    )
    return _run(arguments, backend, tracking)


@recorded_batch_norm_forward.guarded
def _(x, time_steps, weight, bias, eps, rate, v_init, mask, return_v, channels, backend, *rest):
    *config, running_mean, running_var, batches, _, _, spike_count, membrane_l1, positions = rest
    guard_neuron(x, time_steps, rate, NeuronConfig(*config), v_init=v_init)
    guard_list_of(x, channels, weight, bias)
    guard_sums(x, channels, spike_count=spike_count, membrane_l1=membrane_l1, positions=positions)
    guard_sums(x, channels, running_mean=running_mean, running_var=running_var)
    guard_counter("batches", batches)


@recorded_batch_norm_forward.fake
def _(x, time_steps, weight, bias, eps, rate, v_init, mask, return_v, channels, backend, *rest):
    return *fake_forward(x, time_steps, return_v), x.new_empty((4, x.shape[2]), dtype=state_dtype(x))


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
    v_init: Tensor | None,
    mask: Tensor | None,
    return_v: bool,
    channels: Tensor | None,
    backend: str,
    neuron: str,
    tau: float,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
    detach_reset: bool,
    surrogate: str,
    alpha: float,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The outputs of a neuron behind batch norm by given statistics; ``channels``: where those of x stand in these,
    weight and bias, if they are longer."""
    config = NeuronConfig(neuron, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha, beta)
    guard_vectors(x, ("rate", "mask"), rate, mask)
    guard_long(x, channels, ("weight", "bias", "mean", "var"), weight, bias, mean, var)
    arguments = x, time_steps, config, weight, bias, mean, var, eps, rate, v_init, mask, return_v, channels
    return forward_outputs(run(backend, "batch_norm_inference", x, *arguments), x)


@batch_norm_inference.guarded
def _(x, time_steps, weight, bias, mean, var, eps, rate, v_init, mask, return_v, channels, backend, *config):
    guard_neuron(x, time_steps, rate, NeuronConfig(*config), v_init=v_init)
    guard_list_of(x, channels, weight, bias, mean, var)


@batch_norm_inference.fake
def _(x, time_steps, weight, bias, mean, var, eps, rate, v_init, mask, return_v, channels, backend, *config):
    return fake_forward(x, time_steps, return_v)


@Operator
def batch_norm_backward(
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    x: Tensor,
    time_steps: int,
    weight: Tensor | None,
    bias: Tensor | None,
    norm: Tensor,
    eps: float,
    rate: Tensor | None,
    v_init: Tensor | None,
    channels: Tensor | None,
    backend: str,
    neuron: str,
    tau: float,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
    detach_reset: bool,
    surrogate: str,
    alpha: float,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    config = NeuronConfig(neuron, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha, beta)
    guard_vectors(x, ("rate",), rate)
    guard_long(x, channels, ("weight", "bias"), weight, bias)
    arguments = grad_spikes, grad_v, x, time_steps, config, weight, bias, norm, eps, rate, v_init, channels
    return run(backend, "batch_norm_backward", x, *arguments)


@batch_norm_backward.guarded
def _(grad_spikes, grad_v, x, time_steps, weight, bias, norm, eps, rate, v_init, channels, backend, *config):
    like_x = {"v_init": v_init, "grad_v": grad_v, "grad_spikes": grad_spikes}
    guard_neuron(x, time_steps, rate, NeuronConfig(*config), **like_x)
    guard_list_of(x, channels, weight, bias)
    if norm.shape != (4, x.shape[2]) or norm.dtype != state_dtype(x) or not norm.is_contiguous():
        raise ValueError(f"norm: expected contiguous {state_dtype(x)} [4, {x.shape[2]}], got {describe(norm)}")


@batch_norm_backward.fake
def _(grad_spikes, grad_v, x, time_steps, weight, bias, norm, eps, rate, v_init, channels, backend, *config):
    return (
        empty_activation(x, x.shape[0]),
        fake_gradient(weight, x),
        fake_gradient(bias, x),
        fake_gradient(rate, x),
        or_empty(None, x) if v_init is None else empty_state(x, state_dtype(x)),
    )


def _setup(ctx, inputs, output):
    x, time_steps, weight, bias, eps, rate, v_init, _mask, return_v, channels, *rest = inputs
    ctx.save_for_backward(x, weight, bias, rate, v_init, output[4], channels)
    ctx.time_steps, ctx.eps, ctx.rest, ctx.inputs = time_steps, eps, rest[:10], len(inputs)
    ctx.mark_non_differentiable(*not_differentiable(output, return_v))
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_spikes, grad_v, *_):
    x, weight, bias, rate, v_init, norm, channels = ctx.saved_tensors
    grads = [None] * ctx.inputs
    if grad_spikes is not None or grad_v is not None:
        g = batch_norm_backward(
            grad_spikes, grad_v, x, ctx.time_steps, weight, bias, norm, ctx.eps, rate, v_init, channels, *ctx.rest
        )
        grads[0] = g[0]
        for slot, given, z in zip((2, 3, 5, 6), (weight, bias, rate, v_init), g[1:], strict=True):
            grads[slot] = None if given is None else z
    return tuple(grads)


batch_norm_forward.differentiable(_backward, _setup)
recorded_batch_norm_forward.differentiable(_backward, _setup)
batch_norm_backward.no_second_order()


def _inference_by_torch(
    x, time_steps, weight, bias, mean, var, eps, rate, v_init, mask, return_v, channels, *rest
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The neuron behind a prelude that torch makes of the statistics, and differentiates."""
    weight, bias, mean, var = (at_width(z, channels, x) for z in (weight, bias, mean, var))
    prelude = by_torch.prelude(mean, var, weight, bias, eps)
    return neuron_forward.overload(x, time_steps, *prelude, rate, v_init, mask, return_v, *rest)


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
    x: Tensor,
    time_steps: int,
    scale: Tensor,
    shift: Tensor,
    center: Tensor,
    rate: Tensor | None,
    v_init: Tensor | None,
    backend: str,
    neuron: str,
    tau: float,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
    detach_reset: bool,
    surrogate: str,
    alpha: float,
    beta: float,
) -> Tensor:
    config = NeuronConfig(neuron, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha, beta)
    guard_vectors(x, ("scale", "shift", "center", "rate"), scale, shift, center, rate)
    arguments = grad_spikes, grad_v, x, time_steps, config, scale, shift, center, rate, v_init
    return run(backend, "batch_norm_sums", x, *arguments)


@batch_norm_sums.guarded
def _(grad_spikes, grad_v, x, time_steps, scale, shift, center, rate, v_init, backend, *config):
    like_x = {"v_init": v_init, "grad_v": grad_v, "grad_spikes": grad_spikes}
    guard_neuron(x, time_steps, rate, NeuronConfig(*config), **like_x)


@batch_norm_sums.fake
def _(grad_spikes, grad_v, x, time_steps, scale, shift, center, rate, v_init, backend, *config):
    return x.new_empty((2 if rate is None else 3, x.shape[2]), dtype=torch.float64)


@Operator
def batch_norm_gradient(
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    x: Tensor,
    time_steps: int,
    scale: Tensor,
    shift: Tensor,
    center: Tensor,
    slope: Tensor,
    offset: Tensor,
    rate: Tensor | None,
    v_init: Tensor | None,
    backend: str,
    neuron: str,
    tau: float,
    v_threshold: float,
    v_reset: float | None,
    decay_input: bool,
    detach_reset: bool,
    surrogate: str,
    alpha: float,
    beta: float,
) -> tuple[Tensor, Tensor]:
    config = NeuronConfig(neuron, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha, beta)
    vectors = scale, shift, center, slope, offset, rate
    guard_vectors(x, ("scale", "shift", "center", "slope", "offset", "rate"), *vectors)
    arguments = grad_spikes, grad_v, x, time_steps, config, *vectors, v_init
    return run(backend, "batch_norm_gradient", x, *arguments)


@batch_norm_gradient.guarded
def _(grad_spikes, grad_v, x, time_steps, scale, shift, center, slope, offset, rate, v_init, backend, *config):
    like_x = {"v_init": v_init, "grad_v": grad_v, "grad_spikes": grad_spikes}
    guard_neuron(x, time_steps, rate, NeuronConfig(*config), **like_x)


@batch_norm_gradient.fake
def _(grad_spikes, grad_v, x, time_steps, scale, shift, center, slope, offset, rate, v_init, backend, *config):
    g_v = or_empty(None, x) if v_init is None else empty_state(x, state_dtype(x))
    return empty_activation(x, x.shape[0]), g_v


def _moments_by_torch(x: Tensor, time_steps: int, backend: str) -> Tensor:
    return by_torch.sums(x)


batch_norm_moments.differentiable(by_torch=_moments_by_torch)
batch_norm_sums.no_second_order()
batch_norm_gradient.no_second_order()
