"""Linear layer that skips dormant channels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn as tnn

from .. import checks
from .group import CarriesGroups, ChannelGroup, check_group


class ChannelLinear(CarriesGroups, tnn.Linear):
    """torch.nn.Linear that computes the active channels of its groups alone; same parameters, same state_dict, full
    size.

    Args:
        in_group: channel group of the input, ``in_features = in_group.num_channels * features_per_channel``.
        out_group: channel group of the output, one feature per channel.
        features_per_channel: input features that each channel contributes, side by side (what flattening [C, H, W]
            gives: H * W).
        All others as in torch.nn.Linear.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *arguments,
        in_group: ChannelGroup | None = None,
        out_group: ChannelGroup | None = None,
        features_per_channel: int = 1,
        **named,
    ) -> None:
        checks.weights(tnn.Linear, in_features, out_features, *arguments, **named)
        sizes = {"in_features": in_features, "out_features": out_features, "features_per_channel": features_per_channel}
        for name, size in sizes.items():
            checks.integer(name, size)
        checks.elements("in_features, out_features", (out_features, in_features))
        check_group("in_group", in_group)
        super().__init__(in_features, out_features, *arguments, **named)
        if in_group is not None and in_group.num_channels * features_per_channel != in_features:
            raise ValueError(
                f"in_features: expected {features_per_channel} for each channel of {in_group}, got {in_features}"
            )
        check_group("out_group", out_group, out_features)
        self.in_group, self.out_group, self.features_per_channel = in_group, out_group, features_per_channel

    def input_index(self, device: torch.device) -> Tensor | None:
        """Active input features; None for all."""
        index = None if self.in_group is None else self.in_group.index(device)
        if index is None or self.features_per_channel == 1:
            return index
        offsets = torch.arange(self.features_per_channel, device=device)
        return (index[:, None] * self.features_per_channel + offsets).flatten()

    def forward(self, x: Tensor) -> Tensor:
        """x [*, active input features] (or all: the active ones are then selected) -> [*, active output channels]."""
        if not checks.is_traced(x) and not (checks.is_plain(x) and x.dtype in checks.DTYPES):
            raise TypeError(f"x: expected a floating-point tensor [*, features], got {checks.describe(x)}")
        if x.dim() == 0 or x.device != self.weight.device:
            raise ValueError(f"x: expected [*, features] on {self.weight.device}, got {checks.describe(x)}")
        in_index = self.input_index(x.device)
        out_index = None if self.out_group is None else self.out_group.index(x.device)

        weight, bias = self.weight, self.bias
        if out_index is not None:
            weight = weight.index_select(0, out_index)
            bias = None if bias is None else bias.index_select(0, out_index)
        if in_index is not None:
            weight = weight.index_select(1, in_index)
        if in_index is not None and x.shape[-1] == self.in_features:
            x = x.index_select(-1, in_index)
        if x.shape[-1] != weight.shape[1]:
            raise ValueError(
                f"x: expected {weight.shape[1]} active features in the last dimension, got {tuple(x.shape)}"
            )
        if x.dtype != weight.dtype and (x.is_meta or not torch.is_autocast_enabled(x.device.type)):
            raise TypeError(f"x: expected the dtype of the weight, {weight.dtype}, got {x.dtype}")
        return tnn.functional.linear(x, weight, bias)

    def extra_repr(self) -> str:
        groups = {"in_group": self.in_group, "out_group": self.out_group}
        return ", ".join([super().extra_repr(), *(f"{k}={g}" for k, g in groups.items() if g is not None)])
