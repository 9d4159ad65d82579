"""The neuron as SpikingJelly has it, and its equations in plain torch; whole networks are in :mod:`sca.bench.peers`.

A peer that is not installed is None: it is reported as not measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sca.bench.peers import ALPHA, installed


class _Spike(torch.autograd.Function):
    """Heaviside step with the derivative of an arctangent."""

    @staticmethod
    def forward(ctx, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return grad * (ALPHA / 2) / (1 + (math.pi / 2 * ALPHA * u).square())


def eager_lif(x: Tensor) -> Tensor:
    """LIF, tau 2, threshold 1, hard reset to 0, in plain torch: x [T, N, C, *S] -> spikes, without counts or sums."""
    v = torch.zeros_like(x[0])
    spikes = []
    for t in range(x.shape[0]):
        h = v + (x[t] - v) / 2
        s = _Spike.apply(h - 1)
        v = (1 - s) * h
        spikes.append(s)
    return torch.stack(spikes)


def compiled(function: Callable[..., Tensor], backend: str = "inductor") -> Callable[..., Tensor]:
    """torch.compile for one shape."""
    return torch.compile(function, dynamic=False, backend=backend)


def spikingjelly_lif() -> Callable[[Tensor], Tensor] | None:
    """SpikingJelly's multi-step LIF, its state cleared before each call; release 2.0 picks its backend itself."""
    if not installed("spikingjelly"):
        return None
    from spikingjelly.activation_based import functional, neuron, surrogate

    node = neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(ALPHA), step_mode="m")

    def run(x: Tensor) -> Tensor:
        functional.reset_net(node)
        return node(x)

    return run
