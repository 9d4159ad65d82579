"""``sca_kernels::neuron_forward`` and its backward: all time steps of a neuron behind an optional per-channel affine
prelude; ``recorded_neuron_forward`` adds the activity to sums as well.

Operators of neurons end with a backend and the fields of a :class:`NeuronConfig`."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from ..backends import run
from ..layout import empty_activation, empty_state, state_dtype
from ..neurons import NeuronConfig
from ..tracking import Tracking, change
from .common import CONFIG, Operator, fake_forward, fake_gradient, forward_outputs, not_differentiable, or_empty, seen
from .guards import SUMS, guard_neuron, guard_sums, guard_vectors


@Operator
def neuron_forward(
    x: Tensor,
    time_steps: int,
    scale: Tensor | None,
    shift: Tensor | None,
    rate: Tensor | None,
    threshold: Tensor | None,
    v_init: Tensor | None,
    mask: Tensor | None,
    return_v: bool,
    return_h: bool,
    backend: str,
    *config: NeuronConfig,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    given = x, time_steps, NeuronConfig(*config), scale, shift, rate, v_init, mask, return_v
    return _run(given, threshold, return_h, backend, None)


def _run(
    given: tuple[Any, ...], threshold: Tensor | None, return_h: bool, backend: str, tracking: Tracking | None
) -> tuple[Tensor | None, ...]:
    """Outputs of the operator; what is to be tracked is once they have turned out well."""
    x, _, _, scale, shift, rate, _, mask, _ = given
    guard_vectors(x, ("scale", "shift", "rate", "threshold", "mask"), scale, shift, rate, threshold, mask)
    out = run(backend, "neuron_forward", x, *given, tracking, threshold, return_h)
    outputs = forward_outputs(out, x)
    if tracking is not None and not out.has_tracked:
        change(out.spike_count, out.membrane_l1, None, tracking)
    return outputs


@neuron_forward.guarded
def _(x, time_steps, scale, shift, rate, threshold, v_init, mask, return_v, return_h, backend, *config):
    guard_neuron(x, time_steps, rate, NeuronConfig(*config), v_init=v_init)


@neuron_forward.fake
def _(x, time_steps, scale, shift, rate, threshold, v_init, mask, return_v, return_h, backend, *config):
    return fake_forward(x, time_steps, return_v, return_h)


@functools.partial(Operator, changed=tuple(SUMS), plain=(*SUMS, "channels"))
def recorded_neuron_forward(
    x: Tensor,
    time_steps: int,
    scale: Tensor | None,
    shift: Tensor | None,
    rate: Tensor | None,
    threshold: Tensor | None,
    v_init: Tensor | None,
    mask: Tensor | None,
    return_v: bool,
    return_h: bool,
    spike_count: Tensor,
    membrane_l1: Tensor,
    positions: Tensor,
    channels: Tensor | None,
    backend: str,
    *config: NeuronConfig,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Beside: sums, and where x's channels stand in them; see :class:`sca_kernels.tracking.Tracking`."""
    given = x, time_steps, NeuronConfig(*config), scale, shift, rate, v_init, mask, return_v
    tracking = Tracking(seen(x, time_steps), (spike_count, membrane_l1, positions), channels=channels)
    return _run(given, threshold, return_h, backend, tracking)


@recorded_neuron_forward.guarded
def _(x, time_steps, scale, shift, rate, threshold, v_init, mask, return_v, return_h, *rest):
    spike_count, membrane_l1, positions, channels, _, *config = rest
    guard_neuron(x, time_steps, rate, NeuronConfig(*config), v_init=v_init)
    guard_sums(x, channels, spike_count=spike_count, membrane_l1=membrane_l1, positions=positions)


@recorded_neuron_forward.fake
def _(x, time_steps, scale, shift, rate, threshold, v_init, mask, return_v, return_h, *rest):
    return fake_forward(x, time_steps, return_v, return_h)


@Operator
def neuron_backward(
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    grad_h: Tensor | None,
    x: Tensor,
    time_steps: int,
    scale: Tensor | None,
    shift: Tensor | None,
    rate: Tensor | None,
    threshold: Tensor | None,
    v_init: Tensor | None,
    backend: str,
    *config: NeuronConfig,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    guard_vectors(x, ("scale", "shift", "rate", "threshold"), scale, shift, rate, threshold)
    arguments = grad_spikes, grad_v, x, time_steps, NeuronConfig(*config), scale, shift, rate, v_init
    return run(backend, "neuron_backward", x, *arguments, threshold, grad_h)


@neuron_backward.guarded
def _(grad_spikes, grad_v, grad_h, x, time_steps, scale, shift, rate, threshold, v_init, backend, *config):
    like_x = {"v_init": v_init, "grad_v": grad_v, "grad_h": grad_h, "grad_spikes": grad_spikes}
    guard_neuron(x, time_steps, rate, NeuronConfig(*config), **like_x)


@neuron_backward.fake
def _(grad_spikes, grad_v, grad_h, x, time_steps, scale, shift, rate, threshold, v_init, backend, *config):
    return (
        empty_activation(x, x.shape[0]),
        fake_gradient(scale, x),
        fake_gradient(shift, x),
        fake_gradient(rate, x),
        or_empty(None, x) if v_init is None else empty_state(x, state_dtype(x)),
        fake_gradient(threshold, x),
    )


def _setup(ctx, inputs, output):
    x, time_steps, scale, shift, rate, threshold, v_init, _mask, return_v, return_h, *_ = inputs
    ctx.save_for_backward(x, scale, shift, rate, threshold, v_init)
    ctx.time_steps, ctx.config, ctx.inputs = time_steps, inputs[-CONFIG:], len(inputs)
    ctx.mark_non_differentiable(*not_differentiable(output, return_v, return_h))
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_spikes, grad_v, _count, _l1, grad_h):
    x, *own = ctx.saved_tensors
    grads = [None] * ctx.inputs
    if any(g is not None for g in (grad_spikes, grad_v, grad_h)):
        g = neuron_backward(grad_spikes, grad_v, grad_h, x, ctx.time_steps, *own, *ctx.config)
        grads[0] = g[0]
        scale, shift, rate, threshold, v_init = own
        for slot, given, z in zip((2, 3, 4, 6, 5), (scale, shift, rate, v_init, threshold), g[1:], strict=True):
            grads[slot] = None if given is None else z
    return tuple(grads)


neuron_forward.differentiable(_backward, _setup)
recorded_neuron_forward.differentiable(_backward, _setup)
neuron_backward.no_second_order()
