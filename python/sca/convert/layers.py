"""Layers as ours: what a plain or foreign layer becomes an object of."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sca_kernels import nn as snn

__all__ = ["EXACT", "LAYERS", "FrameBatchNorm", "HeldBatchNorm", "attributes_of"]


class FrameBatchNorm(snn.ChannelBatchNorm2d):
    """A batch norm that takes frames [M, C, H, W] as well as sequences [T, N, C, H, W]: it was torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.dim() == 5 else super().forward(x.unsqueeze(0)).squeeze(0)

    def channel_dim(self, x: Tensor) -> int:
        """The dimension of the channels."""
        return x.dim() - 3


class HeldBatchNorm(FrameBatchNorm):
    """A batch norm that the neuron behind it computes: it has the parameters, and passes on what it gets."""

    def forward(self, x: Tensor) -> Tensor:
        return x


_CONVOLUTION = {"in_group": None, "out_group": None, "spike_input": None, "backend": None, "path": None}
_CONVOLUTION["_last_asked"] = None  # which it keeps at its first call

LAYERS: dict[type[nn.Module], tuple[type[nn.Module], dict[str, Any]]] = {
    nn.Conv2d: (snn.ChannelConv2d, _CONVOLUTION),
    nn.Linear: (snn.ChannelLinear, {"in_group": None, "out_group": None, "features_per_channel": 1}),
    nn.BatchNorm2d: (FrameBatchNorm, {"group": None, "process_group": None}),
    nn.MaxPool2d: (snn.MaxPool2d, {}),
    nn.AvgPool2d: (snn.AvgPool2d, {}),
}
"""torch's layer, ours, and the attributes that torch's has not."""

EXACT = {nn.MaxPool2d, nn.AvgPool2d}
"""Of these no subclass: others read sequences, ours frames."""


def attributes_of(module: nn.Module, attributes: dict[str, Any]) -> dict[str, Any]:
    """Those that the module has not itself."""
    return {name: value for name, value in attributes.items() if name not in vars(module)}
