"""Helpers for tests and benchmarks of anything built on this package: inputs in every layout, comparisons, poisoned
memory, and which twins of a neuron or surrogate are missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .layout import dense_strides
from .neurons import NEURONS, Leak, NeuronConfig
from .surrogates import Surrogate
from .twins import missing as missing_twins

__all__ = ["activation", "eager_neuron", "missing_twins", "poisoned_memory", "relative_l2"]


def activation(shape: Sequence[int], dtype=torch.float32, channels_last=False, device="cpu", spread=1.5) -> Tensor:
    """Random input current [T, N, C, *S], spread so that about a third of a LIF layer fires, and both sides of the
    threshold are met."""
    x = torch.randn(shape, device=device) * spread + 0.3
    return torch.empty_strided(shape, dense_strides(shape, channels_last), device=device, dtype=dtype).copy_(x)


def relative_l2(result: Tensor, truth: Tensor) -> float:
    """``|result - truth| / |truth|`` in float64 (the plain norm of result where truth is zero); NaN never passes a
    bound."""
    result, truth = result.detach().double().cpu(), truth.detach().double().cpu()
    norm = truth.norm().item()
    error = (result - truth).norm().item()
    return error / norm if norm else error


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u: Tensor, surrogate: Surrogate, config: NeuronConfig) -> Tensor:
        ctx.save_for_backward(u)
        ctx.surrogate = surrogate
        return (u > 0 if config.fire == ">" else u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (u,) = ctx.saved_tensors
        return grad * ctx.surrogate.derivative(u), None, None


def eager_neuron(
    x: Tensor,
    config: NeuronConfig,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    rate: Tensor | None = None,
    v_init: Tensor | None = None,
    threshold: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The equations of a neuron step by step, differentiated by autograd: what every gradient is compared with.

    Returns:
        spikes [T, N, C, *S], the final potential [N, C, *S] and the potentials before the reset [T, N, C, *S], in the
        dtype of x.
    """
    surrogate = Surrogate(config.surrogate, config.alpha, config.beta, config.surrogate_scale)

    def channels(p: Tensor) -> Tensor:
        return p.view(-1, *[1] * (x.dim() - 3))

    leak = Leak(config.tau, config.leak_rate if rate is None else channels(rate), config.decay)
    at = config.v_threshold if threshold is None else channels(threshold)
    v = torch.full_like(x[0], config.rest) if v_init is None else v_init
    spikes, potentials = [], []
    for x_t in x:
        y = x_t if scale is None else x_t * channels(scale)
        y = y if shift is None else y + channels(shift)
        h = NEURONS[config.neuron].charge(v, y, leak, config.rest, config.decay_input)
        s = torch.zeros_like(h) if config.never_fires else _Spike.apply(h - at, surrogate, config)
        in_reset = s.detach() if config.detach_reset else s
        if config.never_fires:
            v = h
        elif config.v_reset is None:
            v = h - in_reset * (at if config.v_subtract is None else config.v_subtract)
        else:
            v = (1 - in_reset) * h + in_reset * config.v_reset
        spikes.append(s)
        potentials.append(h)
    return torch.stack(spikes), v, torch.stack(potentials)


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill whatever torch.empty and its kin hand out with NaN (integers: the most negative), so that an element nobody
    wrote shows."""
    names = ("empty", "empty_like", "empty_strided")
    originals = {name: getattr(torch, name) for name in names}

    def poison(z: Tensor) -> Tensor:
        if z.is_floating_point():
            return z.fill_(float("nan"))
        return z if z.dtype == torch.bool else z.fill_(torch.iinfo(z.dtype).min)

    try:
        for name, original in originals.items():
            setattr(torch, name, lambda *a, _original=original, **k: poison(_original(*a, **k)))
        yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)
