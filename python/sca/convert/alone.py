"""A converted neuron against the original, by itself: in a network it may never fire, or never be near its
threshold."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sca_kernels.nn.neuron import NeuronModule

from .states import reset_states

__all__ = ["difference_alone"]

STEPS, SAMPLES, CHANNELS = 24, 2, 16
GRADIENT = {torch.float32: 1e-5, torch.float64: 1e-9}
"""Largest difference of gradients, relative to the largest of them."""
FLIPPED = 1e-4
"""The share of spikes that may differ where a neuron's equation is known to round elsewhere than ours."""


class _Run(NamedTuple):
    spikes: Tensor  # [T, N, C]
    gradients: dict[str, Tensor]


def difference_alone(
    theirs: nn.Module, ours: nn.Module, time: str, rank: int, threshold: float, rounds_elsewhere: bool = False
) -> str:
    """What differs, in words, or "": spikes (none may) and gradients, on random currents of many sizes and on multiples
    of a quarter of the threshold, which hit it exactly.

    Args:
        theirs, ours: neurons without a state; they are run as copies.
        time: how their input lies, "TN", "NT" or "single".
        rank: of a sequence.
        threshold: the unit of the currents.
        rounds_elsewhere: the neuron's equation is ours but for roundings.
    """
    for kind, x in _currents(threshold, rank):
        if rounds_elsewhere and kind != "random currents":
            continue
        before, after = (_run(module, x, time) for module in (theirs, ours))
        if before.spikes.shape != after.spikes.shape:
            return f"alone, it gives {list(after.spikes.shape)}, the original {list(before.spikes.shape)}"
        wrong = before.spikes != after.spikes
        if wrong.sum() > (FLIPPED * wrong.numel() if rounds_elsewhere else 0):
            step = int(wrong.flatten(1).any(1).nonzero()[0])
            return f"alone, on {kind}, {int(wrong.sum())} of {wrong.numel()} spikes differ, first at step {step}"
        if wrong.any():
            continue  # behind a spike that differs gradients do, too
        worst = _worst_gradient(before, after, torch.float32)
        if worst is not None:  # a learned leak's is a sum that may cancel: float64 tells
            with contextlib.suppress(RuntimeError, TypeError):  # of code that makes float32 tensors of its own
                doubled = (_run(module, x, time, torch.float64) for module in (theirs, ours))
                worst = _worst_gradient(*doubled, torch.float64)
        if worst is not None:
            return f"alone, on {kind}, the gradient of {worst[0]} is off by {worst[1]:.1e} of the largest"
    return ""


def _currents(threshold: float, rank: int) -> Iterator[tuple[str, Tensor]]:
    """[T, N, C, 1, ...] of the rank."""
    shape = (STEPS, SAMPLES, CHANNELS)[:rank]
    generator = torch.Generator().manual_seed(11)
    unit = abs(threshold) if 0 < abs(threshold) < float("inf") else 1.0
    sizes = torch.logspace(-2, 5, shape[-1], 2)
    for kind, x in (
        ("random currents", (torch.randn(shape, generator=generator) + 0.3) * sizes),
        ("a grid that hits the threshold", torch.randint(-4, 13, shape, generator=generator) / 4),
    ):
        yield kind, (x * unit).view(*shape, *[1] * (rank - len(shape)))


def _run(module: nn.Module, x: Tensor, time: str, dtype: torch.dtype = torch.float32) -> _Run:
    copied = copy.deepcopy(module).to(dtype).train()
    if dtype == torch.float64 and isinstance(copied, NeuronModule):
        copied.arguments = copied.arguments | {"backend": "reference"}
    reset_states(copied)
    device = next((p.device for p in (*copied.parameters(), *copied.buffers())), x.device)
    leaf = x.detach().clone().to(device, dtype).requires_grad_()
    with torch.random.fork_rng(), torch.enable_grad():
        spikes = _spikes(copied, leaf * 1, time)  # no leaf, which code that works in place could not take
        if spikes.requires_grad:
            weights = torch.randn(spikes.shape, generator=torch.Generator().manual_seed(12)).to(spikes)
            (spikes * weights).sum().backward()
    gradients = {"its input": leaf.grad, **{name: p.grad for name, p in copied.named_parameters()}}
    return _Run(spikes.detach(), {name: z for name, z in gradients.items() if z is not None})


def _spikes(module: nn.Module, x: Tensor, time: str) -> Tensor:
    if time != "single":
        output = module(x if time == "TN" else x.transpose(0, 1))
        spikes = output[0] if isinstance(output, tuple) else output
        return spikes if time == "TN" else spikes.transpose(0, 1)
    states, found = (), []
    for current in x:
        output = module(current, *states)
        if isinstance(output, tuple):
            states = () if getattr(module, "init_hidden", False) else output[1:]
            output = output[0]
        found.append(output)
    return torch.stack(found)


def _worst_gradient(before: _Run, after: _Run, dtype: torch.dtype) -> tuple[str, float] | None:
    """Of which gradient, and by how much, if that is too much."""
    off = {name: _largest_share(wanted, after.gradients.get(name)) for name, wanted in before.gradients.items()}
    name = max(off, key=off.__getitem__, default="")
    return (name, off[name]) if name and not off[name] <= GRADIENT[dtype] else None


def _largest_share(wanted: Tensor, other: Tensor | None) -> float:
    if other is None:
        return math.inf
    usable = wanted.isfinite()  # an exponential that is too large counts for nothing
    difference, largest = (wanted - other)[usable].abs(), wanted[usable].abs()
    return float(difference.max() / largest.max()) if usable.any() and largest.max() > 0 else float(difference.sum())
