"""Layers as ours: what a plain or foreign layer becomes an object of."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sca_kernels import nn as snn

__all__ = ["EXACT", "HELD", "LAYERS", "attributes_of"]


class FrameBatchNorm(snn.ChannelBatchNorm2d):
    """A batch norm that takes frames [M, C, H, W] as well as sequences [T, N, C, H, W]: it was torch's."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.dim() == 5 else super().forward(x.unsqueeze(0)).squeeze(0)

    def channel_dim(self, x: Tensor) -> int:
        """The dimension of the channels."""
        return x.dim() - 3


class FrameBatchNorm1d(snn.ChannelBatchNorm1d):
    """The same for [M, C] and [M, C, L], where it was torch's; SpikingJelly's reads sequences in step mode "m"."""

    def forward(self, x: Tensor) -> Tensor:
        if getattr(self, "step_mode", "s") == "m":
            return super().forward(x)
        return super().forward(x.unsqueeze(0)).squeeze(0)

    def channel_dim(self, x: Tensor) -> int:
        """The dimension of the channels."""
        return 2 if getattr(self, "step_mode", "s") == "m" else 1


class _Held:
    """A batch norm that the neuron behind it computes: it has the parameters, and passes on what it gets."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class HeldBatchNorm(_Held, FrameBatchNorm):
    """See :class:`FrameBatchNorm`."""


class HeldBatchNorm1d(_Held, FrameBatchNorm1d):
    """See :class:`FrameBatchNorm1d`."""


_CONVOLUTION = {"in_group": None, "out_group": None, "spike_input": None, "backend": None, "path": None}
_CONVOLUTION["_last_asked"] = None  # which it keeps at its first call

_NORM = {"group": None, "process_group": None}
_TRANSPOSED = {"in_group": None, "out_group": None}

LAYERS: dict[type[nn.Module], tuple[type[nn.Module], dict[str, Any]]] = {
    nn.Conv2d: (snn.ChannelConv2d, _CONVOLUTION),
    nn.Conv1d: (snn.ChannelConv1d, _CONVOLUTION),
    nn.ConvTranspose2d: (snn.ChannelConvTranspose2d, _TRANSPOSED),
    nn.ConvTranspose1d: (snn.ChannelConvTranspose1d, _TRANSPOSED),
    nn.Linear: (snn.ChannelLinear, {"in_group": None, "out_group": None, "features_per_channel": 1}),
    nn.BatchNorm2d: (FrameBatchNorm, _NORM),
    nn.BatchNorm1d: (FrameBatchNorm1d, _NORM),
    nn.MaxPool2d: (snn.MaxPool2d, {}),
    nn.AvgPool2d: (snn.AvgPool2d, {}),
}
"""torch's layer, ours, and the attributes that torch's has not."""

HELD: dict[type[nn.Module], type[nn.Module]] = {nn.BatchNorm2d: HeldBatchNorm, nn.BatchNorm1d: HeldBatchNorm1d}
"""Batch norms that a neuron can compute, too, and what they become where it does."""

EXACT = {nn.MaxPool2d, nn.AvgPool2d}
"""Of these no subclass: others read sequences, ours frames."""


def attributes_of(module: nn.Module, attributes: dict[str, Any]) -> dict[str, Any]:
    """Those that the module has not itself."""
    return {name: value for name, value in attributes.items() if name not in vars(module)}
