"""A network's structure as plain values: its groups, which channels of them are active, and which modules carry them.

Taken from one model and given to another, it makes the second what the first was: a model of the same architecture with
groups of its own, or one whose modules carry none yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sca_kernels import checks
from sca_kernels.nn import ChannelGroup
from sca_kernels.nn.group import ROLES

from .attach import has_groups
from .groups import CONVOLUTIONS, Members, carried, find_groups, weight_dims
from .wrappers import named_modules, unwrapped

__all__ = ["active_of", "require_structure", "restore_structure", "structure_of"]


def active_of(groups: Mapping[str, Members]) -> dict[str, list[int] | None]:
    """Active channels of each group by name; None where all are."""
    return {
        name: None if members.group.all_active else members.group.active.tolist() for name, members in groups.items()
    }


def structure_of(model: nn.Module) -> dict[str, Any]:
    """The structure of a model, in a wrapper or not, as plain values.

    Returns:
        ``groups``: for each name the number of ``channels``, the ``active`` ones (None: all) and whether it is
        ``prunable``; ``carried``: for each module's name, the names of the groups in ``out_group``, ``group`` and
        ``in_group``, and ``features_per_channel`` where that is not 1. Both are empty where no module carries a group.
    """
    model = unwrapped(checks.instance("model", model, nn.Module, "a torch.nn.Module"))
    if not has_groups(model):
        return {"groups": {}, "carried": {}}
    groups = find_groups(model)
    names = {id(members.group): name for name, members in groups.items()}
    places: dict[str, dict[str, Any]] = {}
    for name, module in named_modules(model):
        roles: dict[str, Any] = {
            role: [names[id(part)] for part in group.parts]
            for role in ROLES
            if (group := carried(module, role)) is not None
        }
        if roles:
            features = getattr(module, "features_per_channel", 1)
            places[name] = roles | ({"features_per_channel": features} if features != 1 else {})
    active = active_of(groups)
    return {
        "groups": {
            name: {
                "channels": members.group.num_channels,
                "active": active[name],
                "prunable": members.group.prunable,
            }
            for name, members in groups.items()
        },
        "carried": places,
    }


def require_structure(model: nn.Module, structure: Any) -> None:
    """See to it that :func:`restore_structure` will do; nothing is changed.

    Raises:
        ValueError: it is no structure, or not one of this model; the message names the group or module, what was
            expected and what came.
    """
    model = unwrapped(checks.instance("model", model, nn.Module, "a torch.nn.Module"))
    groups, places = _parts_of(structure)
    if has_groups(model):
        own = find_groups(model)
        for name in {**groups, **own}:
            ours = own[name].group.num_channels if name in own else "no such group"
            theirs = groups[name]["channels"] if name in groups else "no such group"
            if ours != theirs:
                raise ValueError(f"structure: group {name!r}: expected {ours} channels, as in the model, got {theirs}")
        return
    modules = dict(named_modules(model))
    for name, roles in places.items():
        module = modules.get(name)
        for role, parts in roles.items():
            if module is None or not hasattr(module, role):
                kind = "no such module" if module is None else type(module).__name__
                raise ValueError(f"structure: {name}.{role}: expected a module of the model that has it, got {kind}")
            if role in ROLES:
                _require_size(f"{name}.{role}", module, role, sum(groups[part]["channels"] for part in parts), roles)


def restore_structure(model: nn.Module, structure: Any) -> None:
    """Make the active channels of a model those of a structure; a model without groups is given them.

    Args:
        model: in a wrapper or not; of the architecture that :func:`structure_of` was asked about.
        structure: what that returned.

    Raises:
        ValueError: see :func:`require_structure`; nothing was changed.
    """
    require_structure(model, structure)
    model = unwrapped(model)
    groups, places = _parts_of(structure)
    if has_groups(model):
        own = {name: members.group for name, members in find_groups(model).items()}
    else:
        own = {name: ChannelGroup(kept["channels"], name, kept["prunable"]) for name, kept in groups.items()}
        modules = dict(named_modules(model))
        for name, roles in places.items():
            for role, value in roles.items():
                wanted = ChannelGroup.concat(*(own[part] for part in value)) if role in ROLES else value
                setattr(modules[name], role, wanted)
    for name, kept in groups.items():
        active = range(kept["channels"]) if kept["active"] is None else kept["active"]
        if own[name].active.tolist() != list(active):
            own[name].set_active(active)


def _parts_of(structure: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Groups and places of a structure, checked to be such; they may come from a file that somebody made up."""
    try:
        groups, places = structure["groups"], structure["carried"]
        for name, kept in groups.items():
            group = ChannelGroup(kept["channels"], name, kept["prunable"])  # says what is wrong with these
            if kept["active"] is not None:
                group.set_active(kept["active"])
        for name, roles in places.items():
            for role, value in roles.items():
                if role == "features_per_channel":
                    checks.integer(f"{name}.{role}", value)
                elif role not in ROLES or not value or any(part not in groups for part in value):
                    raise ValueError(f"{name}.{role}: expected names of groups, got {value!r:.100}")
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"structure: expected what sca.structure.structure_of gives ({error})") from error
    return groups, places


def _require_size(place: str, module: nn.Module, role: str, channels: int, roles: Mapping[str, Any]) -> None:
    """ValueError unless a module has as many channels as the groups that it is to carry in this role."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return  # a neuron: any number of channels
    outputs, inputs = weight_dims(module)
    groups = module.groups if isinstance(module, CONVOLUTIONS) else 1
    if role == "in_group":
        size = weight.shape[inputs] * (groups if inputs else 1) // roles.get("features_per_channel", 1)
    else:
        size = weight.shape[outputs] * (groups if outputs else 1)
    if size != channels:
        raise ValueError(f"structure: {place}: expected {size} channels, as the module has, got {channels}")
