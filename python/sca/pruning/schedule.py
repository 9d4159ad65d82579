"""When to cut and how far: pure functions of a training run's progress, and the plan that puts them on a step axis."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from sca_kernels import checks

from .settings import PruneSettings, multiple

__all__ = ["DENSITY_CURVES", "REGROW_CURVES", "Plan"]


def constant_density(progress: float, final: float) -> float:
    """The final density from the first update on, as in SCA (Li et al., ICML 2024)."""
    return final


def cubic_density(progress: float, final: float) -> float:
    """Fast cuts first, slow ones later: eq. 1 of Zhu & Gupta, "To prune, or not to prune" (2017), from density 1."""
    return final + (1 - final) * (1 - progress) ** 3


def linear_density(progress: float, final: float) -> float:
    """Equal cuts at every update."""
    return final + (1 - final) * (1 - progress)


def cosine_density(progress: float, final: float) -> float:
    """Half a cosine wave: slow at both ends."""
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


def cosine_regrowth(progress: float, fraction: float) -> float:
    """Regrown share of the *active* channels, from ``fraction`` to 0 (Evci et al., RigL, ICML 2020)."""
    return fraction * (1 + math.cos(math.pi * progress)) / 2


def constant_regrowth(progress: float, fraction: float) -> float:
    """Regrown share of *all* channels, the same at every update: the constant q of SCA."""
    return fraction


constant_regrowth.of_all = True


#: name -> density in (0, 1] for a progress in [0, 1] and the final density
DENSITY_CURVES: dict[str, Callable[[float, float], float]] = {
    "constant": constant_density,
    "cubic": cubic_density,
    "linear": linear_density,
    "cosine": cosine_density,
}

#: name -> regrown share for a progress in [0, 1] and ``regrow_fraction``; of the active channels, or, where the
#: function has a true attribute ``of_all``, of all
REGROW_CURVES: dict[str, Callable[[float, float], float]] = {"cosine": cosine_regrowth, "constant": constant_regrowth}


def nearest(x: float) -> int:
    """The integer nearest to x >= 0, halves upwards (``round`` would send 2.5 to 2 and 3.5 to 4)."""
    return math.floor(x + 0.5)


@dataclass(frozen=True, kw_only=True)
class Plan(PruneSettings):
    """The settings of a pruning run, and when its updates happen. Steps are optimizer steps, counted from 1."""

    start: int
    """Step of the first update."""

    stop: int
    """Updates happen at ``start``, ``start + interval``, ... as long as they do not pass this step; the last of them
    reaches the final density, and from then on the structure is frozen."""

    interval: int
    """Steps between updates."""

    def __post_init__(self) -> None:
        for name, low in ("start", 1), ("stop", self.start), ("interval", 1):
            checks.integer(name, getattr(self, name), low, 2**63 - 1)
        super().__post_init__()

    @property
    def last(self) -> int:
        """Step of the last update."""
        return self.stop - (self.stop - self.start) % self.interval

    def is_update(self, step: int) -> bool:
        """Whether the structure may change after optimizer step ``step``."""
        return self.start <= step <= self.last and (step - self.start) % self.interval == 0

    def progress(self, step: int) -> float:
        """0 at the first update, 1 at the last (and where there is only one)."""
        return 1.0 if self.last == self.start else (step - self.start) / (self.last - self.start)

    def density_at(self, step: int) -> float:
        """Share of ``target`` that the update at ``step`` leaves."""
        return self._density_curve(self.progress(step), self.density)

    def steps_to_update(self, step: int) -> int | None:
        """How many steps there are from ``step``, the one that comes, to the next that an update follows: 1 where it is
        this one; None where there is none."""
        if step > self.last:
            return None
        return 1 + (self.start - step if step < self.start else -(step - self.start) % self.interval)

    def regrows_at(self, step: int) -> bool:
        """Whether ``step`` is an update that is to regrow channels."""
        return self.is_update(step) and self._regrow_curve(self.progress(step), self.regrow_fraction) > 0

    def regrow_count(self, step: int, active: int, total: int) -> int:
        """Channels to regrow at ``step`` where ``active`` of ``total`` are to be active after it; fewer than
        ``active``.
        """
        share = self._regrow_curve(self.progress(step), self.regrow_fraction)
        of_all = getattr(self._regrow_curve, "of_all", False)
        return min(nearest(share * (total if of_all else active)), active - 1)

    def floor(self, channels: int) -> int:
        """Least number of active channels in a group of ``channels``."""
        wanted = max(8, -(-channels // 16)) if self.min_channels is None else max(1, self.min_channels)
        return min(wanted, channels)

    def on(self, device_type: str) -> Plan:
        """The plan for parameters on a type of device, where ``round_to`` is a number."""
        return replace(self, round_to=multiple(self.round_to, device_type))

    def least(self, channels: int) -> int:
        """The same after rounding to a multiple of ``round_to``, a number (:meth:`on`)."""
        return min(channels, -(-self.floor(channels) // self.round_to) * self.round_to)

    @functools.cached_property
    def _density_curve(self) -> Callable[[float, float], float]:
        return self.strategy("schedule")

    @functools.cached_property
    def _regrow_curve(self) -> Callable[[float, float], float]:
        return self.strategy("regrow_schedule")
