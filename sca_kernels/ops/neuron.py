"""``sca_kernels::neuron_forward`` and its backward: all time steps of a neuron behind an optional per-channel affine
prelude; ``recorded_neuron_forward`` adds the activity to sums as well."""

from __future__ import annotations

import functools

from torch import Tensor

from ..backends import run
from ..layout import empty_activation, empty_state, state_dtype
from ..neurons import NeuronConfig
from ..tracking import Tracking, change
from .common import Operator, fake_forward, fake_gradient, forward_outputs, not_differentiable, or_empty, seen
from .guards import SUMS, guard_neuron, guard_sums, guard_vectors


@Operator
def neuron_forward(
    x: Tensor,
    time_steps: int,
    scale: Tensor | None,
    shift: Tensor | None,
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    config = NeuronConfig(neuron, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha, beta)
    return _run(x, time_steps, config, scale, shift, rate, v_init, mask, return_v, backend, None)


def _run(
    x, time_steps, config, scale, shift, rate, v_init, mask, return_v, backend, tracking
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Outputs of the operator; what is to be tracked is once they have turned out well."""
    guard_vectors(x, ("scale", "shift", "rate", "mask"), scale, shift, rate, mask)
    arguments = x, time_steps, config, scale, shift, rate, v_init, mask, return_v
    out = run(backend, "neuron_forward", x, *arguments, tracking)
    outputs = forward_outputs(out, x)
    if tracking is not None and not out.has_tracked:
        change(out.spike_count, out.membrane_l1, None, tracking)
    return outputs


@neuron_forward.guarded
def _(x, time_steps, scale, shift, rate, v_init, mask, return_v, backend, *config):
    guard_neuron(x, time_steps, rate, NeuronConfig(*config), v_init=v_init)


@neuron_forward.fake
def _(x, time_steps, scale, shift, rate, v_init, mask, return_v, backend, *config):
    return fake_forward(x, time_steps, return_v)


@functools.partial(Operator, changed=tuple(SUMS), plain=(*SUMS, "channels"))
def recorded_neuron_forward(
    x: Tensor,
    time_steps: int,
    scale: Tensor | None,
    shift: Tensor | None,
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
    spike_count: Tensor,
    membrane_l1: Tensor,
    positions: Tensor,
    channels: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The last four are sums, and where x's channels stand in them; see
    :class:`sca_kernels.tracking.Tracking`."""
    config = NeuronConfig(neuron, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha, beta)
    tracking = Tracking(seen(x, time_steps), (spike_count, membrane_l1, positions), channels=channels)
    return _run(x, time_steps, config, scale, shift, rate, v_init, mask, return_v, backend, tracking)


@recorded_neuron_forward.guarded
def _(x, time_steps, scale, shift, rate, v_init, mask, return_v, backend, *rest):
    *config, spike_count, membrane_l1, positions, channels = rest
    guard_neuron(x, time_steps, rate, NeuronConfig(*config), v_init=v_init)
    guard_sums(x, channels, spike_count=spike_count, membrane_l1=membrane_l1, positions=positions)


@recorded_neuron_forward.fake
def _(x, time_steps, scale, shift, rate, v_init, mask, return_v, backend, *rest):
    return fake_forward(x, time_steps, return_v)


@Operator
def neuron_backward(
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    x: Tensor,
    time_steps: int,
    scale: Tensor | None,
    shift: Tensor | None,
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
    guard_vectors(x, ("scale", "shift", "rate"), scale, shift, rate)
    arguments = grad_spikes, grad_v, x, time_steps, config, scale, shift, rate, v_init
    return run(backend, "neuron_backward", x, *arguments)


@neuron_backward.guarded
def _(grad_spikes, grad_v, x, time_steps, scale, shift, rate, v_init, backend, *config):
    like_x = {"v_init": v_init, "grad_v": grad_v, "grad_spikes": grad_spikes}
    guard_neuron(x, time_steps, rate, NeuronConfig(*config), **like_x)


@neuron_backward.fake
def _(grad_spikes, grad_v, x, time_steps, scale, shift, rate, v_init, backend, *config):
    return (
        empty_activation(x, x.shape[0]),
        fake_gradient(scale, x),
        fake_gradient(shift, x),
        fake_gradient(rate, x),
        or_empty(None, x) if v_init is None else empty_state(x, state_dtype(x)),
    )


def _setup(ctx, inputs, output):
    x, time_steps, scale, shift, rate, v_init, _mask, return_v, *rest = inputs
    ctx.save_for_backward(x, scale, shift, rate, v_init)
    ctx.time_steps, ctx.rest, ctx.inputs = time_steps, rest[:10], len(inputs)
    ctx.mark_non_differentiable(*not_differentiable(output, return_v))
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_spikes, grad_v, _count, _l1):
    x, scale, shift, rate, v_init = ctx.saved_tensors
    grads = [None] * ctx.inputs
    if grad_spikes is not None or grad_v is not None:
        g = neuron_backward(grad_spikes, grad_v, x, ctx.time_steps, scale, shift, rate, v_init, *ctx.rest)
        grads[0] = g[0]
        for slot, given, z in zip((2, 3, 4, 5), (scale, shift, rate, v_init), g[1:], strict=True):
            grads[slot] = None if given is None else z
    return tuple(grads)


neuron_forward.differentiable(_backward, _setup)
recorded_neuron_forward.differentiable(_backward, _setup)
neuron_backward.no_second_order()
