"""All ways in which a neuron of ours can be what an equation says, and which of them round as the foreign one does."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sca_kernels import functional as F

from .equation import Equation, bisected
from .foreign import Foreign
from .numbers import rounded, rounder_numbers

__all__ = ["Boundaries", "Candidate", "candidates_of", "nearest_of", "refined"]


class Candidate(NamedTuple):
    """Arguments of ours but for the surrogate and what has to do with gradients.

    Attributes:
        leak: "tau", "rate", "decay", or "" of a neuron without one.
        factor: of the input.
        missed: bisected currents at which it fires otherwise, in float32 and, where that runs, float64.
    """

    arguments: dict[str, Any]
    leak: str
    factor: float
    missed: tuple[int, ...] = ()

    def with_arguments(self, arguments: dict[str, Any]) -> Candidate:
        return self._replace(arguments=arguments)

    @property
    def rest(self) -> float:
        rest = self.arguments["v_rest"]
        return (self.arguments["v_reset"] or 0.0) if rest is None else rest

    def run(self, x: Tensor, **more: Any) -> Any:
        """Ours, as it is defined: any backend gives the same bits."""
        with warnings.catch_warnings():  # of surrogates whose names had another meaning once
            warnings.simplefilter("ignore", UserWarning)
            return F.neuron(x, **(self.arguments | more), return_v=False, backend="reference")


def candidates_of(equation: Equation) -> list[Candidate]:
    """All ways to write an equation, the usual one first."""
    exact = equation.within < 1e-6
    close = (2e-14 if exact else 1e-7, 8e-15 if exact else 1.3e-7)
    return [
        Candidate(
            {"neuron": "lif" if leak else "if", **own, **_potentials(equation, factor, rest, near), "fire": fire},
            leak,
            factor,
        )
        for leak, own, factor in _leaks(equation.decay, close[0])
        for near in [close[1] + (close[0] / factor if factor != 1 else 0.0)]
        for rest in _rests(equation, factor, near)
        for fire in (">=", ">")
    ]


def _leaks(decay: float, close: float) -> Iterator[tuple[str, dict[str, Any], float]]:
    """Name of the leak, its arguments, and the factor of the input."""
    if decay >= 1 - 4 * close:
        yield "", {}, 1.0
        return
    decay = rounded(decay, close)
    rate = rounded(1 - decay, close)
    tau = rounded(1 / (1 - decay), 2 * close / (1 - decay) ** 2)
    if tau > 1:
        yield "tau", {"tau": tau, "decay_input": False}, 1.0
        yield "tau", {"tau": tau, "decay_input": True}, 1 / tau
    yield "decay", {"decay": decay, "decay_input": False}, 1.0
    yield "rate", {"rate": rate, "decay_input": False}, 1.0
    yield "rate", {"rate": rate, "decay_input": True}, rate


def _rests(equation: Equation, factor: float, close: float) -> list[float]:
    """Resting potentials that a constant can be taken off the others for: 0; what makes the reset 0, or the threshold
    1. No spike tells them apart but by rounding."""
    level = equation.level * factor
    reset = equation.reset * factor if equation.is_hard else 0.0
    return list(dict.fromkeys(rounded(rest, close * level) for rest in (0.0, -reset, 1 - level)))


def _potentials(equation: Equation, factor: float, rest: float, close: float) -> dict[str, Any]:
    level = equation.level * factor
    threshold = rounded(level + rest, 2 * close * (abs(level) + abs(rest)))
    changed = equation.reset * factor
    # the error of a reset is seen through the leak
    close = 8 * close * (abs(level) + abs(rest) + abs(changed)) / max(equation.decay, 1e-3)
    if equation.is_hard:
        reset = rounded(changed + rest, close)
        return {
            "v_threshold": threshold,
            "v_reset": reset,
            "v_subtract": None,
            "v_rest": None if rest == reset else rest,
        }
    # one that is subtracted after the leak: snnTorch's, a step late
    late = threshold / equation.decay if equation.decay else math.inf
    by = late if abs(late - changed) <= close and not abs(threshold - changed) <= close else rounded(changed, close)
    return {
        "v_threshold": threshold,
        "v_reset": None,
        "v_subtract": None if by == threshold else by,
        "v_rest": rest or None,
    }


class Boundaries:
    """Currents [T, 2 M] of one dtype that end just below and just at what fires, half of them multiples of an eighth of
    the level, and the foreign spikes."""

    def __init__(self, foreign: Foreign, level: float, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(5)
        before = torch.randn(5, 96 if foreign.is_wide else 30, generator=generator, dtype=torch.float64) * 0.7 + 0.25
        before[:, ::2] = (before[:, ::2] * 8).round() / 8
        before[:, -4:] = 0  # the threshold itself
        before = (before * level).to(dtype)
        low, high = bisected(foreign, before, 64 * level)
        known = ~low.isnan()
        self.x = torch.cat([torch.cat([before, last[None]])[:, known] for last in (low, high)], 1)
        self.spikes = foreign.spikes(self.x)

    def missed(self, candidate: Candidate) -> int:
        """Lanes that fire otherwise."""
        return int((candidate.run(self.x).spikes.bool() != self.spikes).any(0).sum())


def nearest_of(candidates: list[Candidate], sets: list[Boundaries]) -> list[Candidate]:
    """Those that miss nothing in float32, the best of them in float64; where each misses some, because it rounds
    elsewhere, all that miss about as few."""
    counted = [candidate._replace(missed=tuple(s.missed(candidate) for s in sets)) for candidate in candidates]
    least = min(candidate.missed for candidate in counted)
    if least[0]:
        return [candidate for candidate in counted if candidate.missed[0] <= 2 * least[0] + 8]
    return [candidate for candidate in counted if candidate.missed == least]


def refined(candidate: Candidate, boundaries: Boundaries) -> Candidate:
    """Where float32 is all that there is: the same, with numbers a few bits away that fit better."""
    fields = ("v_threshold", "tau", "rate", "decay", "v_reset", "v_subtract")
    for field in fields * 3:
        number = candidate.arguments.get(field)
        if not number or not boundaries.missed(candidate):
            continue
        ulp = torch.finfo(torch.float32).eps * 2.0 ** (math.frexp(number)[1] - 1)
        start = torch.tensor(number, dtype=torch.float32).item()
        tried = ({**candidate.arguments, field: start + k * ulp} for k in range(-8, 9))
        candidate = min([candidate, *map(candidate.with_arguments, tried)], key=boundaries.missed)
    least = boundaries.missed(candidate)
    for field in fields:
        for number in rounder_numbers(candidate.arguments.get(field) or 0.0, 1e-6, 6):
            rounder = candidate.with_arguments({**candidate.arguments, field: number})
            if boundaries.missed(rounder) <= least:
                candidate = rounder
                break
    return candidate
