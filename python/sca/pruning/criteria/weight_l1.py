"""L1 norm of the filter (Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...structure.groups import channel_axes, places_of, weight_dims
from . import GroupContext


def weight_l1(group: GroupContext) -> Tensor:
    """Sum of a filter's absolute weights, those that read dormant channels left out; summed over the group's producers.

    A group that no layer produces, since it is selected from what others do, is ranked by the weights that read it.

    Raises:
        ValueError: no layer produces or reads the group.
    """
    layers, side = (group.producers, 0) if group.producers else (group.consumers, 1)
    if not layers:
        raise ValueError(f"criterion 'weight_l1': group {group.name!r} has no layer that produces or reads it")
    total = torch.zeros(group.positions.numel(), dtype=torch.float64)
    for layer in layers:
        weight, dim = layer.weight.detach(), weight_dims(layer)[side]
        axes = {axis.dim: axis for axis in channel_axes(layer)["weight"]}
        for axis in axes.values():
            if axis.dim != dim:
                weight = weight.index_select(axis.dim, axis.entries(axis.group.active.to(weight.device)))
        by_channel = weight.movedim(dim, 0).reshape(axes[dim].group.num_channels, -1)
        total += places_of(group.group, axes[dim].group, by_channel.abs().sum(1, dtype=torch.float64).cpu())
    return total


CRITERIA = {"weight_l1": weight_l1}
