"""Selection of the channels that a branch reads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn as tnn

from .. import checks
from ..layout import is_channels_last
from .group import CarriesGroups, ChannelGroup, check_time_major, gathered


class ChannelSelect(CarriesGroups, tnn.Module):
    """Takes the active channels of a group from an activation that holds all of them, as branches off a residual stream
    do (Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017, section 4.1).

    Args:
        in_channels: channels of the activation, always all of them.
        group: those that are read, at most ``in_channels``; the first ones where there are fewer.

    Attributes:
        index: int64 [group.num_channels], where each channel of the group lies in the activation: a buffer, since in a
            compacted network no group says so.
    """

    def __init__(self, in_channels: int, group: ChannelGroup) -> None:
        super().__init__()
        checks.integer("in_channels", in_channels)
        checks.instance("group", group, ChannelGroup, "a ChannelGroup")
        if group.num_channels > in_channels:
            raise ValueError(f"group: expected at most the {in_channels} channels of the input, got {group}")
        self.in_channels, self.group = in_channels, group
        self.register_buffer("index", torch.arange(group.num_channels))

    def reset_parameters(self) -> None:
        """The first channels again, as for a module that was made on the meta device."""
        self.index.copy_(torch.arange(self.index.numel()))

    def forward(self, x: Tensor) -> Tensor:
        """x [T, N, in_channels, *S] -> [T, N, C, *S], C the active channels (all of the group's while probing), in the
        layout of x."""
        check_time_major(x, self.in_channels, "in_channels")
        if not (checks.is_plain(x) or checks.is_traced(x)) or x.dim() < 3 or x.device != self.index.device:
            raise ValueError(f"x: expected [T, N, C, *S] on {self.index.device}, got {checks.describe(x)}")
        index = gathered(self.index, self.group)
        if index.numel() == self.in_channels:
            return x
        if is_channels_last(x):  # index_select returns what is contiguous
            return x.movedim(2, -1).index_select(-1, index).movedim(-1, 2)
        return x.index_select(2, index)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.index.numel() if self.group is None else self.group}"
