"""How channels of different groups are compared: the names that ``allocation`` knows.

An allocation is a pure function ``(values, eligible, prices)`` that turns the groups' values (float64 [C] each; a
score, or a promise) into numbers by which all their channels stand in one ranking. Only those of ``eligible`` (bool [C]
each) are compared. ``prices`` (float64 [C] each) are the synaptic operations that a channel costs beside the active
ones; they are measured where the function has a true attribute ``needs_prices``, else they are None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["ALLOCATIONS", "Allocation", "needs_prices"]

Allocation = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor] | None], Sequence[Tensor]]


def by_value(values: Sequence[Tensor], eligible: Sequence[Tensor], prices: Sequence[Tensor] | None) -> Sequence[Tensor]:
    """The values themselves: one ranking of all channels, as in SCA (Li et al., ICML 2024)."""
    return values


def by_place(values: Sequence[Tensor], eligible: Sequence[Tensor], prices: Sequence[Tensor] | None) -> Sequence[Tensor]:
    """Minus the share of the group that precedes a channel: every group gets the same density, to within a channel."""
    places = []
    for value, mask in zip(values, eligible, strict=True):
        where = mask.nonzero().flatten()
        order = where[value[where].argsort(descending=True, stable=True)]
        place = torch.zeros(value.numel(), dtype=torch.float64)
        place[order] = -(torch.arange(order.numel(), dtype=torch.float64) + 0.5) / value.numel()
        places.append(place)
    return places


def by_price(values: Sequence[Tensor], eligible: Sequence[Tensor], prices: Sequence[Tensor] | None) -> Sequence[Tensor]:
    """Value per synaptic operation; what costs nothing is worth infinitely much, or nothing where it has no value."""
    pairs = zip(values, prices, strict=True)
    return [torch.where(value == 0, 0.0, value / price) for value, price in pairs]


by_price.needs_prices = True

#: name -> function
ALLOCATIONS: dict[str, Allocation] = {"global": by_value, "layer": by_place, "synops": by_price}


def needs_prices(allocation: Allocation) -> bool:
    """Whether it reads what channels cost."""
    return bool(getattr(allocation, "needs_prices", False))
