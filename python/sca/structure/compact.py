"""From active channels to a physically small network."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sca_kernels import checks
from sca_kernels.nn import reset
from sca_kernels.nn.group import ROLES

from .groups import Axis, Members, carried, channel_axes, find_groups, is_depthwise, require_parameters
from .hooks import forget_hooks
from .plain import make_plain
from .snapshot import Snapshot
from .wrappers import unwrapped

__all__ = ["compact"]

#: attributes that hold a width, and the attribute that holds its group
_WIDTHS = {"in_channels": "in_group", "out_channels": "out_group", "out_features": "out_group", "num_features": "group"}


@torch.inference_mode(False)  # the copy can be trained, wherever it was made
def compact(
    model: nn.Module, *, plain: bool = False, fold_batch_norm: bool = False, example_input: Any = None
) -> nn.Module:
    """A copy of the model in which every grouped layer has its active channels only, and no group.

    Same outputs as the model, had it been reset (up to the summation order of convolutions of another width), same
    module names and types, same modes. No activity is recorded, stateful neurons start afresh, and tensors that modules
    keep beside their parameters are copied without their graph. The model itself is left as it is.

    It can be pruned again: :func:`sca.attach_groups` then calls groups as they were called here.

    Args:
        model: has channel groups; as it is, or in a wrapper of torch.compile or DistributedDataParallel.
        plain: have torch's own convolutions and ``Linear`` in place of ours where they compute the same: a convolution
            that reads frames [M, C, H, W] or [M, C, L], every linear layer. For tools that know layers by their type;
            on a CPU our own convolutions, which are subclasses, are faster, and only they can be pruned again.
        fold_batch_norm: put batch norms into the convolution or linear layer in front of them, where nothing else reads
            its output, so that neurons alone remain. Takes eval mode. Rounding differs, so that single spikes may.
        example_input: for ``plain`` and ``fold_batch_norm``, which watch a pass: as for :func:`sca.attach_groups`.

    Returns:
        The copy, with ``widths``, a dict that gives each group's number of channels by name, and ``group_names``, which
        gives the name by module and role (``"conv1.out_group"``). Where the model has a dict ``config``, the copy's has
        the widths under ``"widths"``, so that ``sca.models.build(**config)`` rebuilds it (but not with batch norms
        folded: that copy has no config).

    Raises:
        ValueError: the model has no channel group, or a layer with one computes its weight in each pass, as under
            weight norm; no example fits the model; or a batch norm can't be folded.
    """
    model = unwrapped(checks.instance("model", model, nn.Module, "a torch.nn.Module"))
    checks.boolean("plain", plain)
    checks.boolean("fold_batch_norm", fold_batch_norm)
    require_parameters(model)
    kept = Snapshot(model.modules()).tensors
    small = copy.deepcopy(model, {id(x): x.detach().clone() for x in kept if x.grad_fn is not None})
    reset(small)
    forget_hooks(small)
    groups = find_groups(small)
    names = _names(small, groups)
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
    small.group_names = names
    if isinstance(getattr(small, "config", None), dict):
        small.config = {**small.config, "widths": {**(small.config.get("widths") or {}), **small.widths}}
        if fold_batch_norm:
            small.config = None
    if plain or fold_batch_norm:
        make_plain(small, example_input, plain, fold_batch_norm)
    return small


def _names(model: nn.Module, groups: Mapping[str, Members]) -> dict[str, str]:
    """Names of groups by module and role, those of concatenations left out."""
    names = {id(members.group): name for name, members in groups.items()}
    return {
        f"{place}.{role}": names[id(group)]
        for place, module in model.named_modules()
        for role in ("out_group", "group")
        if id(group := carried(module, role)) in names
    }


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
    for attribute in ROLES:
        if carried(module, attribute) is not None:
            setattr(module, attribute, None)
    if getattr(module, "activity", None) is not None:
        module.activity = None
