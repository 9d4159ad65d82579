"""What pruning is set by: one field for each setting, with its meaning, its default and its range. No torch is loaded
for their sake, so that a command's help can be made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from ..registry import find, lookup, name_of

__all__ = ["EXTENSIONS", "TARGETS", "PruneSettings", "entries", "multiple"]

TARGETS = ("channels", "parameters", "synops")

#: setting -> group of entry points in which installed packages name strategies of their own
EXTENSIONS = {
    "schedule": "sca.schedules",
    "criterion": "sca.criteria",
    "allocation": "sca.allocations",
    "regrow": "sca.regrowth",
    "regrow_schedule": "sca.regrow_schedules",
    "regrow_init": "sca.regrow_inits",
}

Strategy = str | Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class PruneSettings:
    """How far, by what and at whose expense a network is pruned; :class:`sca.pruning.Plan` adds when.

    Strategies (schedule, criterion, allocation, regrow and what belongs to it) are names, of this package or of an
    entry point of an installed one (groups: :data:`EXTENSIONS`), or functions and objects themselves.

    Raises:
        TypeError, ValueError: naming the field, what was expected and what came.
    """

    density: float = 0.3
    """Final share of ``target`` that stays, in (0, 1]; 1 prunes nothing."""

    target: str = "channels"
    """What density is a share of: ``channels`` (of all prunable groups), ``parameters`` (the weights of all
    convolutions and linear layers: the connectivity) or ``synops`` (of the dense network's, as measured at the first
    update). The last two take the most channels whose share does not exceed the density."""

    schedule: Strategy = "cubic"
    """Way to the final density over the updates: ``constant`` (the paper's: the final density from the first update
    on), ``cubic``, ``linear`` or ``cosine``. All but the first start at 1, so that the first update cuts nothing."""

    criterion: Strategy = "sca"
    """What active channels are ranked by: a name in ``sca.pruning.criteria``."""

    allocation: Strategy = "global"
    """How channels are ranked: ``global`` (one ranking of all channels, the paper's), ``layer`` (every group to the
    same density, to within a channel), ``synops`` (global, by score per synaptic operation that the channel costs) or
    ``cost`` (by place in the group, per share of all channels and of all connections: the criterion chooses within
    groups, their sizes follow from the network)."""

    regrow: Strategy = "bn_gamma"
    """How dormant channels are ranked: ``bn_gamma`` (gradient of the batch-norm weight, needs a probe) or
    ``random``."""

    regrow_fraction: float = 0.3
    """Share of channels that are regrown instead of kept, in [0, 1), 0 for none; see ``regrow_schedule``."""

    regrow_schedule: Strategy = "cosine"
    """Way of the regrown share: ``cosine`` to 0, of the active channels; or ``constant`` (the paper's q), of all."""

    regrow_pruned: bool = False
    """Whether channels cut by an update may be regrown by the same update."""

    regrow_init: Strategy = "keep"
    """What a regrown channel starts with: ``keep`` (what it had when it was cut), ``zero`` (its outgoing weights are
    zero, so that its return changes no output) or ``reinit`` (drawn afresh)."""

    min_channels: int | None = None
    """Floor of every group, clipped to its size; None: 8 or a sixteenth of it, whichever is larger. One channel always
    stays."""

    round_to: int | None = None
    """The active channels of a group are rounded to the nearest multiple of this (at least one). None: 8 where the
    parameters are on a CUDA device when an update is planned, whose memory accesses take as many, else 1. 16 suits the
    convolutions of oneDNN, which take twice as long for 19 channels as for 16."""

    seed: int = 0
    """Of the generator of everything random."""

    def __post_init__(self) -> None:
        from sca_kernels import checks

        if self.round_to is not None:
            checks.integer("round_to", self.round_to, 1, 2**63 - 1)
        if self.min_channels is not None:
            checks.integer("min_channels", self.min_channels, 0, 2**63 - 1)
        checks.integer("seed", self.seed, -(2**63), 2**64 - 1)  # what torch's generators take
        checks.boolean("regrow_pruned", self.regrow_pruned)
        if not 0 < checks.number("density", self.density) <= 1:
            raise ValueError(f"density: expected a share in (0, 1], got {self.density}")
        if not 0 <= checks.number("regrow_fraction", self.regrow_fraction) < 1:
            raise ValueError(f"regrow_fraction: expected a share in [0, 1), got {self.regrow_fraction}")
        lookup(dict.fromkeys(TARGETS), self.target, "target")
        for setting in EXTENSIONS:
            self.strategy(setting)

    def strategy(self, setting: str) -> Callable[..., Any]:
        """The function or object that a setting names, or is.

        Raises:
            ValueError, TypeError: there is none of that name; it is neither a name nor callable.
        """
        return find(entries(setting), getattr(self, setting), setting, EXTENSIONS[setting])

    @property
    def counts_synops(self) -> bool:
        """Whether an update needs to know what layers read: the density is a share of SynOps, or channels have prices
        in them."""
        from .allocation import price_of

        return self.target == "synops" or price_of(self.strategy("allocation")) == "synops"

    def record(self) -> dict[str, Any]:
        """The settings as plain values, strategies by name."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: name_of(value) if name in EXTENSIONS else value for name, value in plain.items()}


def multiple(round_to: int | None, device_type: str) -> int:
    """What ``round_to`` comes to for parameters on a type of device (``cpu``, ``cuda``)."""
    return (8 if device_type == "cuda" else 1) if round_to is None else round_to


def entries(setting: str) -> dict[str, Callable[..., Any]]:
    """The strategies of this package, by name."""
    from .allocation import ALLOCATIONS
    from .criteria import CRITERIA
    from .growth import REGROWTH
    from .regrow import REGROW_INITS
    from .schedule import DENSITY_CURVES, REGROW_CURVES

    return {
        "schedule": DENSITY_CURVES,
        "criterion": CRITERIA,
        "allocation": ALLOCATIONS,
        "regrow": REGROWTH,
        "regrow_schedule": REGROW_CURVES,
        "regrow_init": REGROW_INITS,
    }[setting]
