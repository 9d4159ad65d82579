"""What an update decides: pure functions, from measured numbers and masks to masks. No module and no device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..cost.layers import LayerCost, active_share, channel_costs, total
from .allocation import Allocation, price_of
from .schedule import Plan, nearest
from .select import Candidates, choose, largest_count

__all__ = ["Budget", "Decision", "decide", "least_share"]

Masks = Mapping[str, Tensor]


@dataclass(frozen=True)
class Budget:
    """What a density is a share of.

    Attributes:
        target: ``channels``, ``parameters`` or ``synops``.
        prunable: names of the groups that are decided on.
        connections: weights of each layer.
        synops: synaptic operations of each layer, as measured; empty where they are not the target.
        dense_synops: those of the dense network.
    """

    target: str
    prunable: Sequence[str]
    connections: Sequence[LayerCost]
    synops: Sequence[LayerCost] = ()
    dense_synops: float = 0.0

    def share(self, masks: Masks) -> float:
        """Share of the target that these masks (bool [C], of all groups) leave."""
        if self.target == "synops":
            return total(self.synops, masks) / self.dense_synops
        if self.target == "parameters":
            return active_share(self.connections, masks)
        prunable = [masks[name] for name in self.prunable]
        return sum(int(mask.sum()) for mask in prunable) / sum(mask.numel() for mask in prunable)


@dataclass(frozen=True)
class Decision:
    """The masks after an update.

    Attributes:
        masks: bool [C] for each prunable group.
        ranked: what active channels were ranked by, float64 [C] for each prunable group: their scores, or what an
            allocation with prices made of them.
        wanted: the share that the schedule asked for.
        share: the share that the masks leave; exceeds ``wanted`` only where the floors do.
    """

    masks: dict[str, Tensor]
    ranked: dict[str, Tensor]
    wanted: float
    share: float


def decide(
    plan: Plan, step: int, masks: Masks, scores: Masks, growth: Mapping[str, Tensor | None], budget: Budget
) -> Decision:
    """Cut and regrow, as far as the plan says at this step.

    Args:
        plan: one whose ``round_to`` is a number (:meth:`~sca.pruning.Plan.on`).
        masks: bool [C] of all groups, as they are.
        scores: float64 [C] of the prunable groups, read where active.
        growth: float64 [C] of the prunable groups, read where dormant; None, in any of them: nothing is regrown.
    """
    allocation: Allocation = plan.strategy("allocation")
    names = list(budget.prunable)
    groups = [Candidates(masks[name], scores[name], growth[name], plan.floor(masks[name].numel())) for name in names]
    prices = None
    named = price_of(allocation)
    if named is not None:
        price = _prices(named, masks, budget)
        prices = [price[name] for name in names]
    channels = sum(masks[name].numel() for name in names)
    growing = all(promise is not None for promise in growth.values())

    def chosen(count: int) -> dict[str, Tensor]:
        regrow = plan.regrow_count(step, count, channels) if growing else 0
        options = {"regrow_pruned": plan.regrow_pruned, "round_to": plan.round_to}
        return dict(
            zip(names, choose(groups, count, regrow, allocation=allocation, prices=prices, **options), strict=True)
        )

    def share(count: int) -> float:
        return budget.share({**masks, **chosen(count)})

    wanted = plan.density_at(step)
    if budget.target == "channels":
        count = max(1, nearest(wanted * channels))
    else:
        rounding = 1e-9  # of shares, which are ratios of float sums
        count = largest_count(1, channels, share, wanted + rounding)
    decided = chosen(count)
    ranked = [g.score for g in groups]
    if prices is not None:
        ranked = list(allocation(ranked, [g.active for g in groups], prices))
    return Decision(decided, dict(zip(names, ranked, strict=True)), wanted, budget.share({**masks, **decided}))


def _prices(named: str, masks: Masks, budget: Budget) -> dict[str, Tensor]:
    """What each channel costs of what an allocation names, float64 [C] by group."""
    if named == "synops":
        return channel_costs(budget.synops, masks)
    # of the dense network: what was cut before changes no price
    return channel_costs(budget.connections, {name: torch.ones_like(mask) for name, mask in masks.items()})


def least_share(plan: Plan, sizes: Mapping[str, int], budget: Budget) -> float | None:
    """Smallest share that ``min_channels`` and ``round_to`` leave of groups of these sizes; None of SynOps, which
    depend on what fires."""
    if budget.target == "synops":
        return None
    masks = {name: torch.ones(size, dtype=torch.bool) for name, size in sizes.items()}
    for name in budget.prunable:
        masks[name][plan.least(sizes[name]) :] = False
    return budget.share(masks)
