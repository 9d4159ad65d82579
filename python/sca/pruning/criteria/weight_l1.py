"""L1 norm of the filter (Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..groups import channel_axes
from . import GroupContext


def weight_l1(group: GroupContext) -> Tensor:
    """Sum of a filter's absolute weights, those that read dormant channels left out; summed over the group's producers.

    Raises:
        ValueError: no layer produces the group.
    """
    if not group.producers:
        raise ValueError(f"criterion 'weight_l1': group {group.name!r} has no producing layer (out_group)")
    total = torch.zeros(group.positions.numel(), dtype=torch.float64)
    for layer in group.producers:
        weight = layer.weight.detach()
        for axis in channel_axes(layer)["weight"]:
            if axis.dim > 0:
                weight = weight.index_select(axis.dim, axis.entries(axis.group.active.to(weight.device)))
        total += weight.abs().flatten(1).sum(1, dtype=torch.float64).cpu()
    return total


CRITERIA = {"weight_l1": weight_l1}
