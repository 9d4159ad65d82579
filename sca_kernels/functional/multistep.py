"""Neurons behind an optional affine prelude: :func:`neuron`, and one name for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks, ops
from ..surrogates import Surrogate
from ..tracking import Tracking, record
from .activity import ActivitySums, check_activity
from .arguments import (
    check_activation,
    check_backend,
    check_leak_rate,
    check_mask,
    check_neuron,
    check_v_init,
    check_vector,
)


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
    activity: ActivitySums | None = None,
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
        activity: sums that this pass is added to, in place, once it has turned out well.

    Raises:
        TypeError, ValueError: an argument is off; the message names it.
        NotANumber: a potential became NaN, see :class:`check_nan`.
    """
    config = check_neuron(neuron, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha)
    x, steps = check_activation(x, time_steps)
    arguments = (
        x,
        steps,
        check_vector("scale", scale, x),
        check_vector("shift", shift, x),
        check_leak_rate(w, config, x),
        check_v_init(v_init, x),
        check_mask(channel_mask, x),
        checks.boolean("return_v", return_v),
        check_backend(backend),
        *config,
    )
    if activity is None:
        return as_output(ops.neuron_forward(*arguments), return_v)
    check_activity(activity, x)
    return as_output(recorded(arguments, activity), return_v)


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


def recorded(arguments: tuple[Any, ...], activity: ActivitySums) -> Sequence[Tensor]:
    """What ``ops.neuron_forward`` gives for its arguments, with the activity added to sums."""
    sums = activity.spike_count, activity.membrane_l1, activity.positions
    if ops.can_change_in_place():
        return ops.recorded_neuron_forward(*arguments, *sums, activity.channels)
    outputs = ops.neuron_forward(*arguments)
    with torch.no_grad():
        record(*outputs[2:4], Tracking(ops.seen(*arguments[:2]), sums, channels=activity.channels))
    return outputs


def as_output(outputs: Sequence[Tensor], return_v: bool) -> NeuronOutput:
    spikes, v, count, l1 = outputs
    return NeuronOutput(spikes, v if return_v else None, count, l1)
