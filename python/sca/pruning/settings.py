"""What pruning is set by: one field for each setting, with its meaning, its default and its range. No torch is loaded
for their sake, so that a command's help can be made of them."""

from __future__ import annotations

from dataclasses import dataclass

from ..registry import lookup

__all__ = ["PruneSettings"]

TARGETS = ("channels", "parameters", "synops")


@dataclass(frozen=True, kw_only=True)
class PruneSettings:
    """How far, by what and at whose expense a network is pruned; :class:`Plan` adds when.

    Raises:
        TypeError, ValueError: naming the field, what was expected and what came.
    """

    density: float = 0.3
    """Final share of ``target`` that stays, in (0, 1]; 1 prunes nothing."""

    target: str = "channels"
    """What density is a share of: ``channels`` (of all prunable groups), ``parameters`` (the weights of all
    convolutions and linear layers: the connectivity) or ``synops`` (of the dense network's, as measured at the first
    update). The last two take the most channels whose share does not exceed the density."""

    schedule: str = "cubic"
    """Way to the final density over the updates: ``constant`` (the paper's: the final density from the first update
    on), ``cubic``, ``linear`` or ``cosine``. All but the first start at 1, so that the first update cuts nothing."""

    criterion: str = "sca"
    """What active channels are ranked by: a name in ``sca.pruning.criteria``."""

    allocation: str = "global"
    """How channels are ranked: ``global`` (one ranking of all channels, the paper's), ``layer`` (every group to the
    same density, to within a channel) or ``synops`` (global, by score per synaptic operation that the channel
    costs)."""

    regrow: str = "bn_gamma"
    """How dormant channels are ranked: ``bn_gamma`` (gradient of the batch-norm weight, needs a probe) or
    ``random``."""

    regrow_fraction: float = 0.3
    """Share of channels that are regrown instead of kept, in [0, 1), 0 for none; see ``regrow_schedule``."""

    regrow_schedule: str = "cosine"
    """Way of the regrown share: ``cosine`` to 0, of the active channels; or ``constant`` (the paper's q), of all."""

    regrow_pruned: bool = False
    """Whether channels cut by an update may be regrown by the same update."""

    regrow_init: str = "keep"
    """What a regrown channel starts with: ``keep`` (what it had when it was cut), ``zero`` (its outgoing weights are
    zero, so that its return changes no output) or ``reinit`` (drawn afresh)."""

    min_channels: int | None = None
    """Floor of every group, clipped to its size; None: 8 or a sixteenth of it, whichever is larger. One channel always
    stays."""

    round_to: int = 1
    """The active channels of a group are rounded to the nearest multiple of this (at least one): 16 suits the
    convolutions of oneDNN, which take twice as long for 19 channels as for 16."""

    seed: int = 0
    """Of the generator of everything random."""

    def __post_init__(self) -> None:
        from sca_kernels import checks

        from .criteria import CRITERIA
        from .regrow import REGROW_INITS
        from .schedule import DENSITY_CURVES, REGROW_CURVES

        checks.integer("round_to", self.round_to, 1, 2**63 - 1)
        if self.min_channels is not None:
            checks.integer("min_channels", self.min_channels, 0, 2**63 - 1)
        checks.integer("seed", self.seed, -(2**63), 2**64 - 1)  # what torch's generators take
        checks.boolean("regrow_pruned", self.regrow_pruned)
        if not 0 < checks.number("density", self.density) <= 1:
            raise ValueError(f"density: expected a share in (0, 1], got {self.density}")
        if not 0 <= checks.number("regrow_fraction", self.regrow_fraction) < 1:
            raise ValueError(f"regrow_fraction: expected a share in [0, 1), got {self.regrow_fraction}")
        for name, known in (
            ("target", TARGETS),
            ("schedule", DENSITY_CURVES),
            ("criterion", CRITERIA),
            ("allocation", ("global", "layer", "synops")),
            ("regrow", ("bn_gamma", "random")),
            ("regrow_schedule", REGROW_CURVES),
            ("regrow_init", REGROW_INITS),
        ):
            lookup(dict.fromkeys(known), getattr(self, name), name)
