"""How much of a network pruning has left: its density, of channels, and its connectivity, of weights."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from sca_kernels.nn import ChannelGroup

from ..structure.groups import Members, carried
from .layers import LayerCost, active_share, connections, weight_layers

__all__ = ["connectivity", "density", "weights_and_masks"]


def density(groups: Iterable[ChannelGroup]) -> float:
    """Active / all channels of those groups that are prunable, in (0, 1]; 1 where none is."""
    prunable = [group for group in groups if group.prunable]
    if not prunable:
        return 1.0
    return sum(group.num_active for group in prunable) / sum(group.num_channels for group in prunable)


def connectivity(model: nn.Module) -> float:
    """Weights between active channels / all weights of convolutions and linear layers, in (0, 1]."""
    layers, masks = weights_and_masks(model)
    return active_share(layers.values(), masks)


def weights_and_masks(model: nn.Module) -> tuple[dict[str, LayerCost], dict[str, Tensor]]:
    """The weights of each layer by name, and which channels of the groups between them are active.

    The groups go by numbers: a network whose costs are counted need not name its groups, or not differently, or need
    not have any.
    """
    layers = weight_layers(model)
    found: dict[int, ChannelGroup] = {}
    for layer in layers.values():
        for role in "in_group", "out_group":
            group = carried(layer, role)
            found.update({id(part): part for part in (() if group is None else group.parts)})
    groups = {str(number): Members(str(number), group) for number, group in enumerate(found.values())}
    masks = {name: members.group.mask() for name, members in groups.items()}
    return dict(zip(layers, connections(model, groups), strict=True)), masks
