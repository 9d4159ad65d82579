"""How channels of different groups are compared: the names that ``allocation`` knows.

An allocation is a pure function ``(values, eligible, prices)`` that turns the groups' values (float64 [C] each; a
score, or a promise behind the infinite values of channels that are kept) into numbers by which all their channels stand
in one ranking. Only those of ``eligible`` (bool [C] each) are compared. ``prices`` (float64 [C] each) are what the
function's attribute ``prices`` names: ``synops``, the synaptic operations, measured, that a channel costs beside the
active ones; ``connections``, the weights that it has in the dense network, its filters and those that read it. Without
the attribute they are None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["ALLOCATIONS", "Allocation", "price_of"]

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


by_price.prices = "synops"


def by_cost(values: Sequence[Tensor], eligible: Sequence[Tensor], prices: Sequence[Tensor] | None) -> Sequence[Tensor]:
    """The share of the group that a channel precedes, itself included, per share of all channels and of all connections
    that it is: wide layers at the end, which hold nearly all connections, are cut most, and the layers at the front,
    where operations are, still lose some."""
    channels = sum(price.numel() for price in prices)
    connections = sum(float(price.sum()) for price in prices)
    places = by_place(values, eligible, None)
    return [(1 + place) / (1 / channels + price / connections) for place, price in zip(places, prices, strict=True)]


by_cost.prices = "connections"

#: name -> function
ALLOCATIONS: dict[str, Allocation] = {"global": by_value, "layer": by_place, "synops": by_price, "cost": by_cost}


def price_of(allocation: Allocation) -> str | None:
    """What the prices are that it reads; None: it reads none.

    Raises:
        ValueError: it names others than there are.
    """
    named = getattr(allocation, "prices", None)
    if named not in (None, "synops", "connections"):
        raise ValueError(f"allocation: expected prices 'synops' or 'connections', got {named!r}")
    return named
