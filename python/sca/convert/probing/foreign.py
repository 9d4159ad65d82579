"""A foreign neuron, run as many independent ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["Foreign", "Refused", "check_gradient_is_one", "check_is_one_neuron", "in_loop"]

State = TypeVar("State")


class Refused(Exception):
    """No neuron of ours; says why."""

    def __init__(self, reason: str, residual: float = 0.0, differing: int = 0) -> None:
        super().__init__(reason)
        self.residual, self.differing = residual, differing


def in_loop(
    step: Callable[[Tensor, State], tuple[Tensor, State]], initial: Callable[[Tensor], State] | None = None
) -> Callable[[Tensor], Tensor]:
    """Code of one step as :func:`probe_neuron` wants it, of all steps.

    Args:
        step: (current [*shape], state) -> (spikes [*shape], next state).
        initial: first current [*shape] -> state; None: the state is None.
    """

    def run(x: Tensor) -> Tensor:
        state = None if initial is None else initial(x[0])
        spikes = []
        for current in x:
            spike, state = step(current, state)
            spikes.append(spike)
        return torch.stack(spikes)

    return run


class Foreign:
    """A foreign neuron as many independent ones, lanes: x [T, M] -> spikes [T, M], M whatever is wanted.

    Attributes:
        lanes: how many a call of the shape given has.
        dtype: what it computes in, as far as is known.
        has_single: whether it makes float32 spikes of float64 currents; gradients that go through them are rounded.
        is_wide: whether a call takes more samples than the shape has, so that many lanes cost no more than a few.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], shape: Sequence[int], device: torch.device | str) -> None:
        self.run, self.shape, self.device = run, tuple(shape), torch.device(device)
        self.lanes = math.prod(self.shape)
        self.dtype = torch.float32
        self.has_single = False
        self.is_wide = False

    def widen(self) -> None:
        """Take as many samples per call as are wanted, where that works and changes nothing."""
        x = _random(3, 4, 4 * self.lanes)
        narrow = self.spikes(x)
        self.is_wide = True
        try:
            if not torch.equal(self.spikes(x), narrow):
                self.is_wide = False
        except Refused:
            self.is_wide = False

    def spikes(self, x: Tensor) -> Tensor:
        """bool [T, M]."""
        return self._call(x).detach().bool()

    def gradient(self, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Spikes, bool, and the gradient of ``(weights * spikes).sum()``; [T, M]."""
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            spikes = self._call(leaf)
            if not spikes.requires_grad:
                raise Refused("its spikes have no gradient")
            try:
                (grad,) = torch.autograd.grad(spikes, leaf, weights, allow_unused=True)
            except RuntimeError as error:
                raise Refused(f"its gradient can't be computed: {error}") from error
        if grad is None:
            raise Refused("its spikes have no gradient")
        return spikes.detach().bool(), grad

    def _call(self, x: Tensor) -> Tensor:
        steps, lanes = x.shape
        part = math.prod(self.shape[1:]) if self.is_wide else self.lanes
        padded = torch.nn.functional.pad(x, (0, -lanes % part))
        width = padded.shape[1] if self.is_wide else part
        shape = (-1, *self.shape[1:]) if self.is_wide else self.shape
        done = [self._once(piece.reshape(steps, *shape)) for piece in padded.split(width, dim=1)]
        return torch.cat(done, dim=1)[:, :lanes]

    def _once(self, x: Tensor) -> Tensor:
        """x [T, *shape] -> spikes [T, M], checked."""
        given = list(x.shape)
        try:
            spikes = self.run(x.clone().to(self.device))
        except Exception as error:  # foreign code may raise anything
            raise Refused(f"it fails on {x.dtype} currents {given}: {type(error).__name__}: {error}") from error
        if not isinstance(spikes, Tensor):
            raise Refused(f"it returns {type(spikes).__name__}, not a tensor")
        if list(spikes.shape) != given:
            raise Refused(f"it returns {list(spikes.shape)} for currents {given}")
        if not ((spikes == 0) | (spikes == 1)).all():
            other = spikes.detach()[(spikes != 0) & (spikes != 1)][0].item()
            raise Refused(f"its spikes are not binary: one is {other:.6g}")
        self.has_single |= x.dtype == torch.float64 and spikes.dtype != torch.float64
        return spikes.reshape(given[0], -1).to(x.device, x.dtype)


def _random(seed: int, steps: int, lanes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers [T, M], scaled lane by lane by 0.5 to 64: thresholds are not known yet."""
    z = torch.randn(steps, lanes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (z * torch.logspace(-1, 6, 8, 2, dtype=torch.float64).repeat(lanes // 8 + 1)[:lanes]).to(dtype)


def check_is_one_neuron(foreign: Foreign, scale: float = 1.0) -> None:
    """It is what it is at each run, element by element, with the same numbers everywhere, now and later."""
    x = _random(0, 32, foreign.lanes) * scale
    spikes = foreign.spikes(x)
    if not torch.equal(foreign.spikes(x), spikes):
        raise Refused("noise: two runs differ")
    if foreign.lanes > 1:
        for lane, seed in itertools.product({0, foreign.lanes - 1}, (1, 2)):
            other = _random(seed, 32, foreign.lanes).abs() * scale  # of one sign: an inhibition or a mean shows
            other[:, lane] = x[:, lane]
            if not torch.equal(foreign.spikes(other)[:, lane], spikes[:, lane]):
                raise Refused("its spikes depend on other channels or samples")
        if not torch.equal(foreign.spikes(x.flip(1)), spikes.flip(1)):
            raise Refused("its channels or samples are not all the same neuron")
    if not torch.equal(foreign.spikes(x[:11]), spikes[:11]):
        raise Refused("its spikes depend on later steps, or on how many there are")
    if not torch.equal(foreign.spikes(torch.cat([torch.zeros_like(x[:5]), x]))[5:], spikes):
        raise Refused("it changes with time: five steps without a current make a difference")


def check_gradient_is_one(foreign: Foreign) -> None:
    """The gradient is there, is the same at each run, and is that of each element alone."""
    x, weights = _random(4, 8, foreign.lanes), torch.zeros(8, foreign.lanes, dtype=torch.float32)
    weights[:, 0] = 1
    grad, again = (foreign.gradient(x, weights)[1].nan_to_num() for _ in range(2))
    if not torch.equal(grad, again):
        raise Refused("noise: the gradients of two runs differ")
    if grad[:, 1:].any():
        raise Refused("its gradient depends on other channels or samples")
