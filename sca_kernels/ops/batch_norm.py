"""``sca_kernels::batch_norm_forward`` and its backward: training batch norm fused in front of a neuron."""

from __future__ import annotations

from torch import Tensor

from ..backends import run
from ..layout import empty_activation, empty_state, state_dtype
from ..neurons import NeuronConfig
from .common import Operator, fake_forward, fake_gradient, forward_outputs, not_differentiable, or_empty
from .guards import guard_neuron, guard_vectors


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
    guard_vectors(x, ("weight", "bias", "rate", "mask"), weight, bias, rate, mask)
    arguments = x, time_steps, config, weight, bias, eps, rate, v_init, mask, return_v
    out, mean, var = run(backend, "batch_norm_forward", x, *arguments)
    return *forward_outputs(out, x), mean, var


@batch_norm_forward.guarded
def _(x, time_steps, weight, bias, eps, rate, v_init, mask, return_v, backend, *config):
    guard_neuron(x, time_steps, rate, NeuronConfig(*config), v_init=v_init)


@batch_norm_forward.fake
def _(x, time_steps, weight, bias, eps, rate, v_init, mask, return_v, backend, *config):
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
    return run(backend, "batch_norm_backward", x, *arguments)


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
    ctx.time_steps, ctx.eps, ctx.rest = time_steps, eps, rest
    ctx.mark_non_differentiable(*not_differentiable(output, return_v))
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_spikes, grad_v, *_):
    x, weight, bias, rate, v_init, mean, var = ctx.saved_tensors
    grads = [None] * 19
    if grad_spikes is not None or grad_v is not None:
        g = batch_norm_backward(
            grad_spikes, grad_v, x, ctx.time_steps, weight, bias, mean, var, ctx.eps, rate, v_init, *ctx.rest
        )
        grads[0] = g[0]
        for slot, given, z in zip((2, 3, 5, 6), (weight, bias, rate, v_init), g[1:], strict=True):
            grads[slot] = None if given is None else z
    return tuple(grads)


batch_norm_forward.differentiable(_backward, _setup)
batch_norm_backward.no_second_order()
