"""Neurons behind an optional affine prelude: :func:`neuron`, and one name for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks, ops
from ..neurons import NeuronConfig
from ..surrogates import Surrogate
from ..tracking import Tracking, record
from .activity import ActivitySums, check_activity
from .arguments import (
    apart,
    check_activation,
    check_backend,
    check_leak_rate,
    check_mask,
    check_neuron,
    check_threshold,
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
        membrane_l1: float32 [C], sum of ``|v[t] - v_rest|`` after each reset over T, N and S; bit-identical from run
        to run.
    """

    spikes: Tensor
    v: Tensor | None
    spike_count: Tensor
    membrane_l1: Tensor


class NeuronSequences(NamedTuple):
    """A :class:`NeuronOutput`, and the potentials of all steps that were asked for, [T, N, C, *S] in the dtype of v;
    both are differentiable.

    Attributes:
        v_seq: after each reset, or None. h_seq: before it, or None.
    """

    spikes: Tensor
    v: Tensor | None
    spike_count: Tensor
    membrane_l1: Tensor
    v_seq: Tensor | None
    h_seq: Tensor | None


def neuron(
    x: Tensor,
    neuron: str = "lif",
    *,
    tau: float = 2.0,
    w: Tensor | None = None,
    v_threshold: float | Tensor = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    detach_reset: bool = False,
    surrogate: str | Surrogate = "atan",
    alpha: float | None = None,
    fire: str = ">=",
    v_subtract: float | None = None,
    v_rest: float | None = None,
    rate: float | None = None,
    decay: float | None = None,
    v_init: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    channel_mask: Tensor | None = None,
    time_steps: int | None = None,
    return_v: bool = True,
    return_v_seq: bool = False,
    return_h_seq: bool = False,
    backend: str | None = None,
    activity: ActivitySums | None = None,
) -> NeuronOutput | NeuronSequences:
    """All time steps of a spiking neuron in one pass, with per-channel activity (method: Li et al., ICML 2024;
    equations: module ``sca_kernels.neurons``).

    Equivalent to, for each t: ``h = charge(v, x[t] * scale + shift)``; ``s[t] = h >= v_threshold``;
    ``v = v_reset if s[t] else h`` (``v_reset=None``: ``v = h - v_subtract * s[t]``). Only x is kept for the backward
    pass, which recomputes h. Differentiable once and in reverse mode, by torch.func too; a RuntimeError otherwise.

    Args:
        x: input current [T, N, C, *S], or [T, N], which counts as one channel.
        neuron: "if", "lif" or "plif".
        tau: time constant in steps, > 1; LIF only.
        w: PLIF's parameter, ``1 / tau = sigmoid(w)``; one element, or [C].
        v_threshold: fires where h reaches it; a number, or a tensor, which is differentiable, of one element or [C].
            ``math.inf`` never fires: a readout, whose spikes have no gradient.
        v_reset: potential after a spike (hard reset); None subtracts (soft reset).
        decay_input: whether the input is divided by tau as well.
        detach_reset: whether the gradient ignores the reset's dependence on the spike.
        surrogate: derivative used for the spike: a name of ``sca_kernels.surrogates.TABLE`` or a ``Surrogate``.
        alpha: the surrogate's slope; None takes its default.
        fire: ">=": fires where ``h >= v_threshold``; ">": where ``h > v_threshold``, as in snnTorch and norse.
        v_subtract: what a soft reset subtracts; None: the threshold.
        v_rest: potential that the leak decays to and the first step starts from; None: v_reset (0 for a soft reset).
        rate: in place of tau, which then does not enter: 1 / tau as a number from 0 to 1 that is multiplied by, where
            tau divides; another rounding. LIF only.
        decay: in place of tau: 1 - 1 / tau, the part of a potential that stays, as snnTorch's beta. LIF with
            ``decay_input=False`` only.
        v_init: potential before the first step, [N, C, *S]; None starts from v_rest.
        scale, shift: per-channel affine prelude, [C] each; x itself where None. Differentiable.
        channel_mask: bool [C]; a False channel emits zeros, while its gradient passes as if it emitted
            (straight-through). spike_count and membrane_l1 describe the neuron before this mask.
        time_steps: with x [1, N, C, *S]: present that one step so many times. None: T = x.shape[0].
        return_v: whether the last potential is wanted.
        return_v_seq, return_h_seq: whether the potentials of all steps are wanted, after the resets and before them;
            they take as much memory as float32 spikes.
        backend: None for the best available, or the name of one (which then runs or raises).
        activity: sums that this pass is added to, in place, once it has turned out well.

    Raises:
        TypeError, ValueError: an argument is off; the message names it.
        NotANumber: a potential became NaN, see :class:`check_nan`.
    """
    v_threshold, threshold = apart(v_threshold)
    named = neuron, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha
    config = check_neuron(*named, fire, v_subtract, v_rest, rate, decay)
    flat = isinstance(x, Tensor) and x.dim() == 2
    if flat:
        x, v_init = x.unsqueeze(-1), v_init.unsqueeze(-1) if isinstance(v_init, Tensor) else v_init
    x, steps = check_activation(x, time_steps)
    sequences = checks.boolean("return_v_seq", return_v_seq), checks.boolean("return_h_seq", return_h_seq)
    threshold = check_threshold(threshold, x)
    arguments = (
        x,
        steps,
        check_vector("scale", scale, x),
        check_vector("shift", shift, x),
        check_leak_rate(w, config, x),
        threshold,
        check_v_init(v_init, x),
        check_mask(channel_mask, x),
        checks.boolean("return_v", return_v),
        any(sequences),
    )
    behind = check_backend(backend), *config
    if activity is None:
        outputs = ops.neuron_forward(*arguments, *behind)
    else:
        check_activity(activity, x)
        outputs = recorded(arguments, activity, behind)
    out = as_output(outputs, return_v, sequences, config, threshold)
    return _squeezed(out) if flat else out


def _squeezed(out: NeuronOutput | NeuronSequences) -> NeuronOutput | NeuronSequences:
    """Without the dimension of the one channel."""
    shaped = {name: getattr(out, name, None) for name in ("spikes", "v", "v_seq", "h_seq")}
    return out._replace(**{name: z.squeeze(-1) for name, z in shaped.items() if z is not None})


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


def recorded(arguments: tuple[Any, ...], activity: ActivitySums, behind: tuple[Any, ...]) -> Sequence[Tensor]:
    """What ``ops.neuron_forward`` gives for its arguments (behind: backend and configuration), with the activity added
    to sums."""
    sums = activity.spike_count, activity.membrane_l1, activity.positions
    if ops.can_change_in_place():
        return ops.recorded_neuron_forward(*arguments, *sums, activity.channels, *behind)
    outputs = ops.neuron_forward(*arguments, *behind)
    with torch.no_grad():
        record(*outputs[2:4], Tracking(ops.seen(*arguments[:2]), sums, channels=activity.channels))
    return outputs


def as_output(
    outputs: Sequence[Tensor],
    return_v: bool,
    sequences: tuple[bool, bool],
    config: tuple[Any, ...],
    threshold: Tensor | None,
) -> NeuronOutput | NeuronSequences:
    """The outputs of an operator as users get them; config: the fields of a :class:`NeuronConfig`, as operators get
    them."""
    spikes, v, count, l1, h = outputs
    plain = NeuronOutput(spikes, v if return_v else None, count, l1)
    if not any(sequences):
        return plain
    after, before = sequences
    return NeuronSequences(
        *plain,
        _after_resets(h, spikes, NeuronConfig(*config), threshold) if after else None,
        h if before else None,
    )


def _after_resets(h: Tensor, spikes: Tensor, config: NeuronConfig, threshold: Tensor | None) -> Tensor:
    """Potentials after the resets from those before. Their gradient takes the same way as that of the last one: by h,
    and, unless the reset is detached, by the spikes."""
    if config.never_fires:
        return h
    at = config.v_threshold if threshold is None else threshold.view(-1, *[1] * (h.dim() - 3))
    by = at if config.subtracts_threshold else config.by
    fired = (h > at if config.fire == ">" else h >= at).to(h.dtype)
    if not config.detach_reset:  # what a mask keeps from coming out is reset, too
        fired = fired + (spikes - spikes.detach()).to(h.dtype)
    return h - fired * by if config.v_reset is None else (1 - fired) * h + fired * by
