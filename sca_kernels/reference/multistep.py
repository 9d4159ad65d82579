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
    return torch.full_like(x[0], config.v_rest, dtype=state_dtype(x))


def _leak(config: NeuronConfig, rate: Tensor | None, like: Tensor) -> Leak:
    return Leak(config.tau, None if rate is None else per_channel(rate, like))


def _after_spike(h: Tensor, fired: Tensor, config: NeuronConfig) -> Tensor:
    if config.v_reset is None:
        return torch.where(fired, h - config.v_threshold, h)
    return torch.where(fired, config.v_reset, h)


def forward(
    x: Tensor, time_steps: int, config: NeuronConfig, prelude: Prelude, rate: Tensor | None, v_init: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Integrate x [T, N, C, *S] (or [1, N, C, *S], presented ``time_steps`` times).

    Returns:
        spikes [T, N, C, *S] in x's dtype, final v [N, C, *S], spike_count int64 [C], membrane_l1 float32 [C].
    """
    neuron = NEURONS[config.neuron]
    v = initial_state(x, v_init, config)
    spikes = []
    count = torch.zeros(x.shape[2], dtype=torch.int64, device=x.device)
    l1 = torch.zeros(x.shape[2], dtype=torch.float64, device=x.device)
    for t in range(time_steps):
        y = prelude(x[min(t, x.shape[0] - 1)].to(v.dtype))
        h = neuron.charge(v, y, _leak(config, rate, y), config.v_rest, config.decay_input)
        fired = h >= config.v_threshold
        v = _after_spike(h, fired, config)
        spikes.append(fired.to(x.dtype))
        count += fired.sum([d for d in range(fired.dim()) if d != 1])
        l1 += channel_sum((v - config.v_rest).abs())
    return torch.stack(spikes), v, count, l1.float()


class Gradients(NamedTuple):
    """What the adjoint yields: ``y`` [T or 1, N, C, *S] with respect to the neuron's input current, the rest per
    name."""

    y: Tensor
    v_init: Tensor
    rate: Tensor | None


def backward(
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    x: Tensor,
    time_steps: int,
    config: NeuronConfig,
    prelude: Prelude,
    rate: Tensor | None,
    v_init: Tensor | None,
) -> Gradients:
    """Adjoint of :func:`forward`, h recomputed from x.

    A single step presented ``time_steps`` times has the sum of its gradients over time.
    """
    neuron = NEURONS[config.neuron]
    surrogate = Surrogate(config.surrogate, config.alpha, config.beta)
    v = initial_state(x, v_init, config)
    tape = []
    for t in range(time_steps):
        y = prelude(x[min(t, x.shape[0] - 1)].to(v.dtype))
        h = neuron.charge(v, y, _leak(config, rate, y), config.v_rest, config.decay_input)
        tape.append((v, y, h))
        v = _after_spike(h, h >= config.v_threshold, config)

    g_v = torch.zeros_like(v) if grad_v is None else grad_v.to(v.dtype)
    g_rate = None if rate is None else torch.zeros(x.shape[2], dtype=torch.float64, device=x.device)
    g_y = []
    for t in reversed(range(time_steps)):
        v, y, h = tape[t]
        fired = h >= config.v_threshold
        slope = surrogate.derivative(h - config.v_threshold)
        g_h = torch.zeros_like(h) if grad_spikes is None else grad_spikes[t].to(h.dtype) * slope
        if config.v_reset is None:
            g_h = g_h + g_v
            if not config.detach_reset:
                g_h = g_h - g_v * config.v_threshold * slope
        else:
            g_h = g_h + torch.where(fired, 0.0, g_v)
            if not config.detach_reset:
                g_h = g_h + g_v * (config.v_reset - h) * slope
        if g_rate is not None:
            g_rate += channel_sum(neuron.leak_gradient(g_h, v, y, config.v_rest, config.decay_input))
        g_v, g = neuron.adjoint(g_h, _leak(config, rate, y), config.decay_input)
        g_y.append(g)
    g_y = torch.stack(g_y[::-1])
    if x.shape[0] != time_steps:
        g_y = g_y.sum(0, keepdim=True)
    return Gradients(g_y, g_v, None if g_rate is None else g_rate.to(rate.dtype))
