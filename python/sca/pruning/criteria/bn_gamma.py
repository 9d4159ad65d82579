"""Batch-norm scale (Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

from ...structure.groups import places_of
from . import GroupContext


def bn_gamma(group: GroupContext) -> Tensor:
    """|gamma|, summed over the group's batch norms.

    Raises:
        ValueError: the group has no batch norm with a weight.
    """
    if not group.norms:
        raise ValueError(f"criterion 'bn_gamma': group {group.name!r} has no batch norm with a weight")
    scales = [places_of(group.group, norm.group, norm.weight.detach().double().abs().cpu()) for norm in group.norms]
    return torch.stack(scales).sum(0)


CRITERIA = {"bn_gamma": bn_gamma}
