"""Which channels are active after an update: pure functions of scores, floors and counts (no module, no device, no
randomness).

Everything is a stable sort, so that the number asked for is the number chosen: among equal scores the channel of the
earlier group, then the one of lower index, wins. A threshold on the score would cut another number wherever there are
ties.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .allocation import Allocation, by_value

__all__ = ["Candidates", "choose", "largest_count"]


@dataclass(frozen=True)
class Candidates:
    """What selection knows of one group of C channels (CPU tensors).

    Attributes:
        active: bool [C], the channels that are active now.
        score: float64 [C], importance; read where ``active``.
        growth: float64 [C], promise of a channel that is not active; None, in any of the groups: nothing may be
            regrown.
        floor: how many of the active channels stay at least.
    """

    active: Tensor
    score: Tensor
    growth: Tensor | None = None
    floor: int = 1


def choose(
    groups: Sequence[Candidates],
    count: int,
    regrow: int = 0,
    *,
    allocation: Allocation = by_value,
    prices: Sequence[Tensor] | None = None,
    regrow_pruned: bool = False,
    round_to: int = 1,
) -> list[Tensor]:
    """Masks of ``count`` channels: the best ``count - regrow`` active ones, and the ``regrow`` most promising others.

    Exactly ``count`` channels over all groups, with these exceptions: the floors ask for more; ``round_to`` rounds
    the groups; fewer than ``count`` are active and not enough may be regrown. Where fewer than ``regrow`` may be
    regrown, more are kept.

    Args:
        groups: the candidates, in an order that is the same in every run.
        count: channels to be active over all groups.
        regrow: how many of them are to come from the dormant ones.
        allocation, prices: how channels of different groups are compared, see :mod:`sca.pruning.allocation`.
        regrow_pruned: whether an active channel that is not kept is a candidate for regrowth (its ``growth`` is read).
        round_to: every group's count is rounded to the nearest multiple that its floor allows (or to its size), at
            least one.

    Returns:
        One bool mask [C] for each group.
    """
    active = [g.active for g in groups]
    growing = all(g.growth is not None for g in groups)
    regrow = max(regrow, count - _total(active)) if growing else 0
    if not regrow_pruned:
        regrow = min(regrow, _total([~a for a in active]))

    score = list(allocation([g.score for g in groups], active, prices))
    floors = [_best([s], [a], g.floor)[0] for g, s, a in zip(groups, score, active, strict=True)]
    spare = [a & ~f for a, f in zip(active, floors, strict=True)]
    kept = _union(floors, _best(score, spare, count - regrow - _total(floors)))

    promised = [~k & growing & (~a | regrow_pruned) for a, k in zip(active, kept, strict=True)]
    growth = _behind(kept, [g.growth if growing else g.score for g in groups], promised, allocation, prices)
    chosen = _union(kept, _best(growth, promised, min(regrow, count - _total(kept))))
    least = [g.floor for g in groups]
    return [_rounded(*group, round_to) for group in zip(chosen, score, active, growth, promised, least, strict=True)]


def _behind(
    kept: Sequence[Tensor],
    values: Sequence[Tensor],
    eligible: Sequence[Tensor],
    allocation: Allocation,
    prices: Sequence[Tensor] | None,
) -> list[Tensor]:
    """What an allocation makes of values whose channels stand behind those that are kept."""
    values = [torch.where(k, torch.inf, value) for k, value in zip(kept, values, strict=True)]
    return list(allocation(values, _union(kept, eligible), prices))


def largest_count(low: int, high: int, share: Callable[[int], float], target: float) -> int:
    """Largest count in [low, high] whose ``share``, which rises with it, does not exceed ``target``; else ``low``."""
    while low < high:
        middle = (low + high + 1) // 2
        if share(middle) <= target:
            low = middle
        else:
            high = middle - 1
    return low


def _best(values: Sequence[Tensor], eligible: Sequence[Tensor], count: int) -> list[Tensor]:
    """Masks of the ``count`` eligible channels of highest value over all groups (of all, where there are fewer)."""
    mask = torch.cat(list(eligible))
    where = mask.nonzero().flatten()
    order = torch.cat(list(values))[where].argsort(descending=True, stable=True)
    chosen = torch.zeros_like(mask)
    chosen[where[order[: max(count, 0)]]] = True
    return list(chosen.split([v.numel() for v in values]))


def _rounded(
    chosen: Tensor, score: Tensor, active: Tensor, growth: Tensor, promised: Tensor, floor: int, multiple: int
) -> Tensor:
    """Brings a group to a multiple: drops the worst that were kept, then the least promising that were regrown; or adds
    the best of those that were cut, then the most promising others."""
    count = int(chosen.sum())
    nearest, least = (2 * count + multiple) // (2 * multiple), -(-min(floor, count) // multiple)
    wanted = min(chosen.numel(), max(nearest, least, 1) * multiple)
    for value, eligible in (score, active), (growth, promised):
        change = wanted - int(chosen.sum())
        if change >= 0:
            chosen = chosen | _best([value], [eligible & ~chosen], change)[0]
        else:
            chosen = chosen & ~_best([-value], [eligible & chosen], -change)[0]
    return chosen


def _union(a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]:
    return [x | y for x, y in zip(a, b, strict=True)]


def _total(masks: Sequence[Tensor]) -> int:
    return sum(int(m.sum()) for m in masks)
