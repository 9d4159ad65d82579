"""From active channels to a physically small network."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sca_kernels import checks

from .groups import Axis, carried, channel_axes, find_groups, is_depthwise

__all__ = ["compact"]

#: attributes that hold a width, and the attribute that holds its group
_WIDTHS = {"in_channels": "in_group", "out_channels": "out_group", "out_features": "out_group", "num_features": "group"}


def compact(model: nn.Module) -> nn.Module:
    """A copy of the model in which every grouped layer has its active channels only, and no group.

    Same outputs as the model (up to the summation order of convolutions of another width), same module names and
    types, same modes; no activity is recorded. The model itself is left as it is.

    Args:
        model: has channel groups; unwrapped (no DistributedDataParallel).

    Returns:
        The copy, with ``widths``, a dict that gives each group's number of channels by name. Where the model has a dict
        ``config``, the copy's has these under ``"widths"``, so that ``sca.models.build(**config)`` rebuilds it.

    Raises:
        ValueError: the model has no channel group.
    """
    small = copy.deepcopy(checks.instance("model", model, nn.Module, "a torch.nn.Module"))
    groups = find_groups(small)
    shrunk: dict[Tensor, Tensor] = {}  # shared tensors stay shared
    for module in small.modules():
        depthwise = is_depthwise(module)
        for name, axes in channel_axes(module).items():
            full = getattr(module, name)
            if full not in shrunk:
                shrunk[full] = _shrunk(full, axes)
            setattr(module, name, shrunk[full])
        _forget_groups(module, depthwise)
    small.widths = {name: members.group.num_active for name, members in groups.items()}
    if isinstance(getattr(small, "config", None), dict):
        small.config = {**small.config, "widths": small.widths}
    return small


def _shrunk(full: Tensor, axes: tuple[Axis, ...]) -> Tensor:
    block = full.detach()
    for axis in axes:
        block = block.index_select(axis.dim, axis.entries(axis.group.active.to(full.device)))
    if full.dim() == 4 and full.is_contiguous(memory_format=torch.channels_last):
        block = block.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(block, full.requires_grad) if isinstance(full, nn.Parameter) else block


def _forget_groups(module: nn.Module, depthwise: bool) -> None:
    for width, attribute in _WIDTHS.items():
        group = carried(module, attribute)
        if group is not None and hasattr(module, width):
            setattr(module, width, group.num_active)
    in_group = carried(module, "in_group")
    if in_group is not None and isinstance(module, nn.Linear):
        module.in_features = module.weight.shape[1]
    if in_group is not None and depthwise:
        module.groups = in_group.num_active
    for attribute in ("in_group", "out_group", "group"):
        if carried(module, attribute) is not None:
            setattr(module, attribute, None)
    if getattr(module, "activity", None) is not None:
        module.activity = None
