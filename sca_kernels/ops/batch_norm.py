"""``sca_kernels::batch_norm_forward`` and its backward: training batch norm fused in front of a neuron;
``recorded_batch_norm_forward`` moves running statistics and adds the activity to sums as well. ``batch_norm_moments``,
``batch_norm_sums`` and ``batch_norm_gradient`` are its parts on one of several processes, between whose sums lies a sum
over processes."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..backends import run
from ..backends.base import Backend, Forward
from ..layout import empty_activation, empty_state, state_dtype
from ..neurons import NeuronConfig
from ..reference import batch_norm as by_torch
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
from .guards import SUMS, guard_activation, guard_neuron, guard_sums, guard_vectors


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    config = NeuronConfig(neuron, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha, beta)
    arguments = x, time_steps, config, weight, bias, eps, rate, v_init, mask, return_v
    _, (out, mean, var) = _run(*arguments, backend)
    return *forward_outputs(out, x), mean, var


def _run(
    x, time_steps, config, weight, bias, eps, rate, v_init, mask, return_v, backend
) -> tuple[Backend, tuple[Forward, Tensor, Tensor]]:
    guard_vectors(x, ("weight", "bias", "rate", "mask"), weight, bias, rate, mask)
    arguments = x, time_steps, config, weight, bias, eps, rate, v_init, mask, return_v
    return run(backend, "batch_norm_forward", x, *arguments)


@batch_norm_forward.guarded
def _(x, time_steps, weight, bias, eps, rate, v_init, mask, return_v, backend, *config):
    guard_neuron(x, time_steps, rate, NeuronConfig(*config), v_init=v_init)


@batch_norm_forward.fake
def _(x, time_steps, weight, bias, eps, rate, v_init, mask, return_v, backend, *config):
    stats = [x.new_empty(x.shape[2], dtype=state_dtype(x)) for _ in range(2)]
    return *fake_forward(x, time_steps, return_v), *stats


@functools.partial(Operator, changed=("running_mean", "running_var", *SUMS), plain=(*SUMS, "channels"))
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
    momentum: float,
    momentum_tensor: Tensor | None,
    spike_count: Tensor | None,
    membrane_l1: Tensor | None,
    positions: Tensor | None,
    channels: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Behind beta: running statistics (None: not tracked), the weight of this batch in them (the tensor, where there is
    one), sums of activity (None: not recorded), and where x's channels stand in all of these; see
    :mod:`sca_kernels.reference.running`."""
    config = NeuronConfig(neuron, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha, beta)
    arguments = x, time_steps, config, weight, bias, eps, rate, v_init, mask, return_v
    found, (out, mean, var) = _run(*arguments, backend)
    outputs = forward_outputs(out, x)
    sums = None if spike_count is None else (spike_count, membrane_l1, positions)
    statistics, finite_only = None, False
    if running_mean is not None:
        share = momentum if momentum_tensor is None else momentum_tensor
        statistics, finite_only = (mean, var, running_mean, running_var, share), passes_nan(x.device.type)
    found.finish(out, seen(x, time_steps), sums, statistics, channels, finite_only)
    return *outputs, mean, var


@recorded_batch_norm_forward.guarded
def _(x, time_steps, weight, bias, eps, rate, v_init, mask, return_v, backend, *rest):
    *config, running_mean, running_var, _, _, spike_count, membrane_l1, positions, channels = rest
    guard_neuron(x, time_steps, rate, NeuronConfig(*config), v_init=v_init)
    guard_sums(x, channels, spike_count=spike_count, membrane_l1=membrane_l1, positions=positions)
    guard_sums(x, channels, running_mean=running_mean, running_var=running_var)


@recorded_batch_norm_forward.fake
def _(x, time_steps, weight, bias, eps, rate, v_init, mask, return_v, backend, *rest):
    stats = [x.new_empty(x.shape[2], dtype=state_dtype(x)) for _ in range(2)]
    return *fake_forward(x, time_steps, return_v), *stats


@Operator
def batch_norm_backward(
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    x: Tensor,
    time_steps: int,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    config = NeuronConfig(neuron, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha, beta)
    guard_vectors(x, ("weight", "bias", "mean", "var", "rate"), weight, bias, mean, var, rate)
    arguments = grad_spikes, grad_v, x, time_steps, config, weight, bias, mean, var, eps, rate, v_init
    return run(backend, "batch_norm_backward", x, *arguments)[1]


@batch_norm_backward.guarded
def _(grad_spikes, grad_v, x, time_steps, weight, bias, mean, var, eps, rate, v_init, backend, *config):
    like_x = {"v_init": v_init, "grad_v": grad_v, "grad_spikes": grad_spikes}
    guard_neuron(x, time_steps, rate, NeuronConfig(*config), **like_x)


@batch_norm_backward.fake
def _(grad_spikes, grad_v, x, time_steps, weight, bias, mean, var, eps, rate, v_init, backend, *config):
    return (
        empty_activation(x, x.shape[0]),
        fake_gradient(weight, x),
        fake_gradient(bias, x),
        fake_gradient(rate, x),
        or_empty(None, x) if v_init is None else empty_state(x, state_dtype(x)),
    )


def _setup(ctx, inputs, output):
    x, time_steps, weight, bias, eps, rate, v_init, _mask, return_v, *rest = inputs
    ctx.save_for_backward(x, weight, bias, rate, v_init, output[4], output[5])
    ctx.time_steps, ctx.eps, ctx.rest, ctx.inputs = time_steps, eps, rest[:10], len(inputs)
    ctx.mark_non_differentiable(*not_differentiable(output, return_v))
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_spikes, grad_v, *_):
    x, weight, bias, rate, v_init, mean, var = ctx.saved_tensors
    grads = [None] * ctx.inputs
    if grad_spikes is not None or grad_v is not None:
        g = batch_norm_backward(
            grad_spikes, grad_v, x, ctx.time_steps, weight, bias, mean, var, ctx.eps, rate, v_init, *ctx.rest
        )
        grads[0] = g[0]
        for slot, given, z in zip((2, 3, 5, 6), (weight, bias, rate, v_init), g[1:], strict=True):
            grads[slot] = None if given is None else z
    return tuple(grads)


batch_norm_forward.differentiable(_backward, _setup)
recorded_batch_norm_forward.differentiable(_backward, _setup)
batch_norm_backward.no_second_order()


@Operator
def batch_norm_moments(x: Tensor, time_steps: int, backend: str) -> Tensor:
    return run(backend, "moments", x, x, time_steps)[1]


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
    return run(backend, "batch_norm_sums", x, *arguments)[1]


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
    return run(backend, "batch_norm_gradient", x, *arguments)[1]


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
