"""Which channels pruning took and gave back, as far as a log tells: active sets, churn, overlap, moving ranks.

An update of ``updates.jsonl`` may tell of each group, beside its counts, ``pruned_channels`` and ``regrown_channels``
(indices, sorted) and ``all_scores`` (:func:`sca.packed.pack` of one float for each channel, NaN where it was dormant).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ..packed import unpack

__all__ = [
    "MOST_CHANNELS",
    "Churn",
    "Overlap",
    "active_sets",
    "chance_overlap",
    "check_channels",
    "churn",
    "jaccard",
    "overlaps",
    "rank_correlation",
    "rank_correlations",
    "recorded",
]

#: No group has more channels.
MOST_CHANNELS = 2**16

Rows = Sequence[dict[str, Any]]


def recorded(updates: Rows) -> list[str]:
    """Groups of which every update tells the channels that went and came."""
    names = dict.fromkeys(name for update in updates for name in update["groups"])
    return [name for name in names if all(_tells(update["groups"].get(name, {})) for update in updates)]


def _tells(change: dict[str, Any]) -> bool:
    return "pruned_channels" in change and "regrown_channels" in change


def check_channels(updates: Rows) -> None:
    """See that what a log tells of channels fits together, and to its counts.

    Raises:
        ValueError: it does not; the message begins with the line.
    """
    for line, update in enumerate(updates, 1):
        for name, change in update["groups"].items():
            place = f"line {line}: groups.{name:.100}"
            for what in "pruned", "regrown":
                channels = change.get(f"{what}_channels")
                if channels is not None and (len(channels) != change[what] or _falls(channels)):
                    expected = f"expected {change[what]} indices in rising order"
                    raise ValueError(f"{place}.{what}_channels: {expected}, got {channels!r:.60}")
            if "all_scores" in change:
                try:
                    scores = unpack(change["all_scores"], MOST_CHANNELS)
                except ValueError as error:
                    raise ValueError(f"{place}.all_scores: {error}") from error
                if int((~np.isnan(scores)).sum()) != change["before"]:
                    raise ValueError(f"{place}.all_scores: expected scores of {change['before']} active channels")
    for name in recorded(updates):
        for _ in _walk(updates, name):
            pass


def _falls(channels: Sequence[int]) -> bool:
    return any(a >= b for a, b in pairwise(channels))


def _walk(updates: Rows, name: str) -> Iterator[np.ndarray]:
    """Which channels of a recorded group are active, bool [C]: before the first update, then after each; the same
    array, changed."""
    first = updates[0]["groups"][name]
    place = f"groups.{name:.100}"
    if "all_scores" in first:
        active = ~np.isnan(unpack(first["all_scores"], MOST_CHANNELS))
    elif first["before"] <= MOST_CHANNELS:
        active = np.ones(first["before"], dtype=bool)  # nothing was pruned before
    else:
        raise ValueError(f"line 1: {place}.before: expected at most {MOST_CHANNELS:,}, got {first['before']}")
    yield active
    for line, update in enumerate(updates, 1):
        change = update["groups"][name]
        told = change["before"], len(unpack(change["all_scores"])) if "all_scores" in change else len(active)
        if told != (active.sum(), len(active)):
            raise ValueError(
                f"line {line}: {place}: expected {active.sum()} of {len(active)} channels to be active before this"
                f" update, got {told[0]} of {told[1]}"
            )
        for what, was, turned in ("pruned", True, False), ("regrown", False, True):
            channels = np.asarray(change[f"{what}_channels"], dtype=np.int64)
            if channels.size and (channels[-1] >= len(active) or (active[channels] != was).any()):
                raise ValueError(
                    f"line {line}: {place}.{what}_channels: expected channels that were "
                    f"{'active' if was else 'dormant'} before, got {channels.tolist()!r:.60}"
                )
            active[channels] = turned
        yield active


def active_sets(updates: Rows) -> dict[str, np.ndarray]:
    """Which channels of each recorded group are active after the last update, bool [C]."""
    found = {}
    for name in recorded(updates) if updates else ():
        *_, found[name] = _walk(updates, name)
    return found


@dataclass(frozen=True)
class Churn:
    """What an update took and gave back, over all groups.

    Attributes:
        step: of the update.
        pruned, regrown: channels that went and came.
        returned: those of the pruned ones that a later update regrew.
    """

    step: int
    pruned: int
    regrown: int
    returned: int


def churn(updates: Rows) -> list[Churn]:
    """The churn of each update, over the recorded groups."""
    names = recorded(updates)
    counts = np.zeros((len(updates), 3), dtype=np.int64)
    for name in names:
        left_at: dict[int, int] = {}  # dormant channel -> the update that pruned it
        for at, update in enumerate(updates):
            change = update["groups"][name]
            counts[at, :2] += len(change["pruned_channels"]), len(change["regrown_channels"])
            for channel in change["regrown_channels"]:
                if channel in left_at:
                    counts[left_at.pop(channel), 2] += 1
            left_at.update(dict.fromkeys(change["pruned_channels"], at))
    return [Churn(update["step"], *row) for update, row in zip(updates, counts.tolist(), strict=True)]


@dataclass(frozen=True)
class Overlap:
    """How far two runs agree on a group: the Jaccard overlap of their active sets, and what is to be expected of random
    sets of their sizes."""

    measured: float
    chance: float


def overlaps(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> dict[str, Overlap]:
    """The overlap of two runs' :func:`active_sets` in each group that both have at the same width."""
    found = {}
    for name, mask in first.items():
        other = second.get(name)
        if other is not None and len(other) == len(mask):
            chance = chance_overlap(len(mask), int(mask.sum()), int(other.sum()))
            found[name] = Overlap(jaccard(mask, other), chance)
    return found


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Size of the intersection of two sets / size of their union, in [0, 1]; bool [C] each. Two empty sets agree."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def chance_overlap(total: int, a: int, b: int) -> float:
    """Expected Jaccard overlap of two random sets of ``a`` and ``b`` of ``total`` channels: the mean of
    k / (a + b - k) over the hypergeometric distribution of the size k of their intersection."""
    if not a + b:
        return 1.0
    every = _log_choose(total, b)
    return sum(
        math.exp(_log_choose(a, k) + _log_choose(total - a, b - k) - every) * k / (a + b - k)
        for k in range(max(0, a + b - total), min(a, b) + 1)
    )


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def rank_correlations(updates: Rows, name: str) -> list[float | None]:
    """Rank correlation of a group's scores at each update with those at the next, over the channels that were active at
    both; None where they are not told, or where fewer than two channels, or no two different scores, are left."""
    found: list[float | None] = []
    before: np.ndarray | None = None
    for update in updates:
        text = update["groups"].get(name, {}).get("all_scores")
        scores = None if text is None else unpack(text, MOST_CHANNELS)
        found.append(None)
        if before is not None and scores is not None and len(before) == len(scores):
            both = ~(np.isnan(before) | np.isnan(scores))
            found[-1] = rank_correlation(before[both], scores[both])
        before = scores
    return found[1:]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    """Spearman's: the correlation of ranks, in [-1, 1], equal values sharing their mean rank; None where it is not
    defined."""
    first, second = (_ranks(values) - (len(values) - 1) / 2 for values in (a, b))
    scale = math.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / scale) if scale else None


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[place.reshape(-1)]
