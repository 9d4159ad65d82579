"""What an update did: as objects for the caller, as plain values for logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..packed import pack
from .histogram import histogram

__all__ = ["GroupChange", "PruneEvent"]


@dataclass(frozen=True)
class GroupChange:
    """What an update did to one group.

    Attributes:
        before, after: number of active channels.
        pruned, regrown: the indices that went and came, int64.
        scores: what the active channels were ranked by, as :func:`sca.pruning.histogram.histogram` sums it up.
        all_scores: the same, one by one: float64 [C], NaN for the channels that were dormant.
    """

    before: int
    after: int
    pruned: Tensor
    regrown: Tensor
    scores: dict[str, Any]
    all_scores: Tensor

    @classmethod
    def between(cls, before: Tensor, after: Tensor, ranked: Tensor) -> GroupChange:
        """The change from one mask (bool [C]) to another, decided by what was ``ranked`` (float64 [C])."""
        return cls(
            int(before.sum()),
            int(after.sum()),
            pruned=(before & ~after).nonzero().flatten(),
            regrown=(after & ~before).nonzero().flatten(),
            scores=histogram(ranked[before], after[before]),
            all_scores=torch.where(before, ranked, torch.nan),
        )

    def record(self) -> dict[str, Any]:
        """The change as plain values: numbers of channels, which these were, and all scores packed
        (:func:`sca.packed.unpack` reads them, as float32)."""
        return {
            "before": self.before,
            "pruned": self.pruned.numel(),
            "regrown": self.regrown.numel(),
            "scores": self.scores,
            "pruned_channels": self.pruned.tolist(),
            "regrown_channels": self.regrown.tolist(),
            "all_scores": pack(self.all_scores.tolist()),
        }


@dataclass(frozen=True)
class PruneEvent:
    """What an update did.

    Attributes:
        step: optimizer steps so far.
        density: active / all channels of the prunable groups, after the update.
        share: active share of the plan's target (channels, parameters or SynOps) after the update.
        wanted: the share that the schedule asked for; ``share`` exceeds it only where the floors do.
        groups: by name, the prunable ones.
        dead: names of the neuron layers in which no channel spiked since the last update.
        probed: whether a probe had been taken.
    """

    step: int
    density: float
    share: float
    wanted: float
    groups: dict[str, GroupChange]
    dead: tuple[str, ...]
    probed: bool

    @property
    def pruned(self) -> int:
        """Channels that went."""
        return sum(change.pruned.numel() for change in self.groups.values())

    @property
    def regrown(self) -> int:
        """Channels that came back."""
        return sum(change.regrown.numel() for change in self.groups.values())

    def record(self) -> dict[str, Any]:
        """The event as plain numbers and strings, for logs and plots."""
        numbers = ("step", "density", "share", "wanted", "pruned", "regrown", "probed")
        active = {name: change.after for name, change in self.groups.items()}
        return {
            **{name: getattr(self, name) for name in numbers},
            "dead": list(self.dead),
            "active": active,
            "groups": {name: change.record() for name, change in self.groups.items()},
        }
