"""THE definition of correct: all time steps of a neuron in plain PyTorch, forward and adjoint, in any dtype.

Half-precision inputs are integrated in float32, float64 in float64. Per-channel vectors have shape [C].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..layout import state_dtype
from ..neurons import NEURONS, Leak, NeuronConfig
from ..surrogates import Surrogate


class Prelude(NamedTuple):
    """Per-channel affine prelude ``y = x * scale + shift`` (two roundings), or nothing."""

    scale: Tensor | None = None
    shift: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        if self.scale is not None:
            x = x * per_channel(self.scale, x)
        if self.shift is not None:
            x = x + per_channel(self.shift, x)
        return x


def per_channel(p: Tensor, like: Tensor) -> Tensor:
    """View a [C] vector so that it broadcasts against ``like`` [..., C, *S] of one time step [N, C, *S], in its
    dtype."""
    return p.to(like.dtype).view(-1, *[1] * (like.dim() - 2))


def channel_sum(z: Tensor) -> Tensor:
    """Sum [N, C, *S] over all but the channel, in float64."""
    return z.double().sum([d for d in range(z.dim()) if d != 1])


def initial_state(x: Tensor, v_init: Tensor | None, config: NeuronConfig) -> Tensor:
    """v[0]: [N, C, *S] in the state's dtype."""
    if v_init is not None:
        return v_init.to(state_dtype(x))
    return torch.full_like(x[0], config.rest, dtype=state_dtype(x))


def _leak(config: NeuronConfig, rate: Tensor | None, like: Tensor) -> Leak:
    return Leak(config.tau, config.leak_rate if rate is None else per_channel(rate, like), config.decay)


class _Threshold:
    """Where a neuron fires, one number or one per channel, and what its reset does."""

    def __init__(self, config: NeuronConfig, threshold: Tensor | None, like: Tensor) -> None:
        self.config = config
        self.at = config.threshold if threshold is None else per_channel(threshold, like)
        self.by = self.at if config.subtracts_threshold else config.by

    def is_reached(self, h: Tensor) -> Tensor:
        if self.config.never_fires:
            return torch.zeros_like(h, dtype=torch.bool)
        return h > self.at if self.config.fire == ">" else h >= self.at

    def after_spike(self, h: Tensor, fired: Tensor) -> Tensor:
        return torch.where(fired, self.by if self.config.v_reset is not None else h - self.by, h)


def forward(
    x: Tensor,
    time_steps: int,
    config: NeuronConfig,
    prelude: Prelude,
    rate: Tensor | None,
    v_init: Tensor | None,
    threshold: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Integrate x [T, N, C, *S] (or [1, N, C, *S], presented ``time_steps`` times).

    Returns:
        spikes [T, N, C, *S] in x's dtype, final v [N, C, *S], spike_count int64 [C], membrane_l1 float32 [C], and
        potentials before the reset [T, N, C, *S] in the state's dtype.
    """
    neuron = NEURONS[config.neuron]
    v = initial_state(x, v_init, config)
    at = _Threshold(config, threshold, v)
    spikes, potentials = [], []
    count = torch.zeros(x.shape[2], dtype=torch.int64, device=x.device)
    l1 = torch.zeros(x.shape[2], dtype=torch.float64, device=x.device)
    for t in range(time_steps):
        y = prelude(x[min(t, x.shape[0] - 1)].to(v.dtype))
        h = neuron.charge(v, y, _leak(config, rate, y), config.rest, config.decay_input)
        fired = at.is_reached(h)
        v = at.after_spike(h, fired)
        spikes.append(fired.to(x.dtype))
        potentials.append(h)
        count += fired.sum([d for d in range(fired.dim()) if d != 1])
        l1 += channel_sum((v - config.rest).abs())
    return torch.stack(spikes), v, count, l1.float(), torch.stack(potentials)


class Gradients(NamedTuple):
    """What the adjoint yields: ``y`` [T or 1, N, C, *S] with respect to the neuron's input current, the rest per
    name."""

    y: Tensor
    v_init: Tensor
    rate: Tensor | None
    threshold: Tensor | None


def backward(
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    x: Tensor,
    time_steps: int,
    config: NeuronConfig,
    prelude: Prelude,
    rate: Tensor | None,
    v_init: Tensor | None,
    threshold: Tensor | None = None,
    grad_h: Tensor | None = None,
) -> Gradients:
    """Adjoint of :func:`forward`, h recomputed from x.

    A single step presented ``time_steps`` times has the sum of its gradients over time.
    """
    neuron = NEURONS[config.neuron]
    surrogate = Surrogate(config.surrogate, config.alpha, config.beta)
    v = initial_state(x, v_init, config)
    at = _Threshold(config, threshold, v)
    tape = []
    for t in range(time_steps):
        y = prelude(x[min(t, x.shape[0] - 1)].to(v.dtype))
        h = neuron.charge(v, y, _leak(config, rate, y), config.rest, config.decay_input)
        tape.append((v, y, h))
        v = at.after_spike(h, at.is_reached(h))

    g_v = torch.zeros_like(v) if grad_v is None else grad_v.to(v.dtype)
    g_rate, g_threshold = (
        None if p is None else torch.zeros(x.shape[2], dtype=torch.float64, device=x.device) for p in (rate, threshold)
    )
    g_y = []
    for t in reversed(range(time_steps)):
        v, y, h = tape[t]
        fired, soft = at.is_reached(h), config.v_reset is None
        slope = surrogate.derivative(h - at.at) * config.gain
        by_spike = torch.zeros_like(h) if grad_spikes is None else grad_spikes[t].to(h.dtype) * slope
        if not config.detach_reset:
            by_spike = by_spike - g_v * (at.by if soft else h - at.by) * slope
        if g_threshold is not None:
            subtracted = torch.where(fired, g_v, 0.0) if config.subtracts_threshold else torch.zeros_like(g_v)
            g_threshold -= channel_sum(by_spike + subtracted)
        g_h = by_spike + (g_v if soft else torch.where(fired, 0.0, g_v))
        if grad_h is not None:
            g_h = g_h + grad_h[t].to(h.dtype)
        if g_rate is not None:
            g_rate += channel_sum(neuron.leak_gradient(g_h, v, y, config.rest, config.decay_input))
        g_v, g = neuron.adjoint(g_h, _leak(config, rate, y), config.decay_input)
        g_y.append(g)
    g_y = torch.stack(g_y[::-1])
    if x.shape[0] != time_steps:
        g_y = g_y.sum(0, keepdim=True)
    return Gradients(
        g_y,
        g_v,
        None if g_rate is None else g_rate.to(rate.dtype),
        None if g_threshold is None else g_threshold.to(threshold.dtype),
    )
