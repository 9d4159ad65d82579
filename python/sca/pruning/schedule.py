"""When to cut and how far: pure functions of a training run's progress, and the plan that puts them on a step axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from sca_kernels import checks

from ..registry import lookup
from .criteria import CRITERIA

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


#: name -> density in (0, 1] for a progress in [0, 1] and the final density
DENSITY_CURVES: dict[str, Callable[[float, float], float]] = {
    "constant": constant_density,
    "cubic": cubic_density,
    "linear": linear_density,
    "cosine": cosine_density,
}

# name -> regrown share for a progress in [0, 1] and ``regrow_fraction``; of the active channels, or of all for
# "constant"
REGROW_CURVES: dict[str, Callable[[float, float], float]] = {"cosine": cosine_regrowth, "constant": constant_regrowth}


def nearest(x: float) -> int:
    """The integer nearest to x >= 0, halves upwards (``round`` would send 2.5 to 2 and 3.5 to 4)."""
    return math.floor(x + 0.5)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The settings of a pruning run. Steps are optimizer steps, counted from 1.

    Args:
        start, stop, interval: updates happen at ``start``, ``start + interval``, ... as long as they do not pass
            ``stop``; the last of them reaches the final density, and from then on the structure is frozen.
        density: final share of ``target`` that stays, in (0, 1].
        target: what ``density`` is a share of: ``"channels"`` (of all prunable groups), ``"parameters"`` (the weights
            of all convolutions and linear layers: the connectivity) or ``"synops"`` (of the dense network's, as
            measured at the first update). The last two take the most channels whose share does not exceed the density.
        schedule: density over the updates, one of ``DENSITY_CURVES``. All but ``"constant"`` (the paper) start at 1,
            so that the first update cuts nothing.
        criterion: importance of an active channel, one of ``sca.pruning.criteria.CRITERIA``.
        allocation: ``"global"`` (one ranking of all channels, the paper), ``"layer"`` (every group to the same
            density, to within a channel) or ``"synops"`` (global, by score per synaptic operation that the channel
            costs).
        regrow: how dormant channels are ranked: ``"bn_gamma"`` (gradient of the batch-norm weight, needs a probe) or
            ``"random"``.
        regrow_fraction: in [0, 1), 0 for none: share that is regrown instead of kept, see ``regrow_schedule``.
        regrow_schedule: one of ``REGROW_CURVES``: ``"cosine"`` to 0, a share of the active channels; or
            ``"constant"`` (the paper's q), a share of all channels.
        regrow_pruned: whether channels cut by an update may be regrown by the same update.
        regrow_init: what a regrown channel starts with: ``"keep"`` (what it had when it was cut), ``"zero"`` (its
            outgoing weights are zero, so that its return changes no output) or ``"reinit"`` (drawn afresh).
        min_channels: floor of every group, clipped to its size; None: 8 or a sixteenth of it, whichever is larger.
            One channel always stays.
        round_to: the active channels of a group are rounded to the nearest multiple of this (at least one): 16 suits
            the convolutions of oneDNN, which take twice as long for 19 channels as for 16.
        seed: of the generator of everything random here.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
    """

    start: int
    stop: int
    interval: int
    density: float = 0.3
    target: str = "channels"
    schedule: str = "cubic"
    criterion: str = "sca"
    allocation: str = "global"
    regrow: str = "bn_gamma"
    regrow_fraction: float = 0.3
    regrow_schedule: str = "cosine"
    regrow_pruned: bool = False
    regrow_init: str = "keep"
    min_channels: int | None = None
    round_to: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in ("start", 1), ("stop", self.start), ("interval", 1), ("round_to", 1), ("min_channels", 0):
            value = getattr(self, name)
            if name != "min_channels" or value is not None:
                checks.integer(name, value, low, 2**63 - 1)
        checks.integer("seed", self.seed, -(2**63), 2**64 - 1)  # what torch's generators take
        checks.boolean("regrow_pruned", self.regrow_pruned)
        if not 0 < checks.number("density", self.density) <= 1:
            raise ValueError(f"density: expected a number in (0, 1], got {self.density}")
        if not 0 <= checks.number("regrow_fraction", self.regrow_fraction) < 1:
            raise ValueError(f"regrow_fraction: expected a number in [0, 1), got {self.regrow_fraction}")
        for name, known in (
            ("target", ("channels", "parameters", "synops")),
            ("schedule", DENSITY_CURVES),
            ("criterion", CRITERIA),
            ("allocation", ("global", "layer", "synops")),
            ("regrow", ("bn_gamma", "random")),
            ("regrow_schedule", REGROW_CURVES),
            ("regrow_init", ("keep", "zero", "reinit")),
        ):
            lookup(dict.fromkeys(known), getattr(self, name), name)

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
        return DENSITY_CURVES[self.schedule](self.progress(step), self.density)

    def regrows_at(self, step: int) -> bool:
        """Whether ``step`` is an update that is to regrow channels."""
        return (
            self.is_update(step) and REGROW_CURVES[self.regrow_schedule](self.progress(step), self.regrow_fraction) > 0
        )

    def regrow_count(self, step: int, active: int, total: int) -> int:
        """Channels to regrow at ``step`` where ``active`` of ``total`` are to be active after it; fewer than
        ``active``.
        """
        share = REGROW_CURVES[self.regrow_schedule](self.progress(step), self.regrow_fraction)
        return min(nearest(share * (total if self.regrow_schedule == "constant" else active)), active - 1)

    def floor(self, channels: int) -> int:
        """Least number of active channels in a group of ``channels``."""
        wanted = max(8, -(-channels // 16)) if self.min_channels is None else max(1, self.min_channels)
        return min(wanted, channels)

    def least(self, channels: int) -> int:
        """The same after rounding to a multiple of ``round_to``."""
        return min(channels, -(-self.floor(channels) // self.round_to) * self.round_to)
