"""What channels cost, in connections or in synaptic operations: sums over layers of rates of inputs x outputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..structure.groups import CONVOLUTIONS, Axis, Members, carried, channel_dim, is_depthwise
from ..structure.wrappers import named_modules

__all__ = [
    "Inputs",
    "LayerCost",
    "active_share",
    "channel_costs",
    "connections",
    "input_channels",
    "inputs_of",
    "layer_cost",
    "total",
    "weight_layers",
    "weight_uses",
    "weights_per_pair",
]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

Masks = Mapping[str, Tensor]

# Values that average pools of 2x2, 3x3 and 4x4 take the mean of; and how far, as bfloat16, that may be off.
_WINDOWS = (4, 9, 16)
_ROUNDING = 2**-8


def weight_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Convolutions and linear layers of a model by name, grouped or not: those whose weights and operations count."""
    return {name: m for name, m in named_modules(model) if isinstance(m, (*CONVOLUTIONS, nn.Linear))}


@dataclass(frozen=True)
class LayerCost:
    """``unit`` for each pair of an active output channel and an active input channel, times the input channel's rate.

    Attributes:
        sources, sinks: names of the input's and the output's groups (several of a concatenation, side by side); none:
            all channels, always.
        rates: float64 [input channels].
        outputs: output channels that each input channel reaches, at full width: a part of them in a grouped layer.
        unit: cost of one pair: weights per pair, or those times how often each is used.
        depthwise: each output channel reads the input channel of its index alone.
    """

    sources: tuple[str, ...]
    sinks: tuple[str, ...]
    rates: Tensor
    outputs: int
    unit: float
    depthwise: bool = False

    def inputs(self, masks: Masks) -> float:
        """Sum of the active input channels' rates."""
        return float(self.rates[_joined(masks, self.sources)].sum() if self.sources else self.rates.sum())

    def active_outputs(self, masks: Masks) -> int:
        """Output channels that each input channel reaches."""
        if self.depthwise:
            return 1
        if not self.sinks:
            return self.outputs
        active = _joined(masks, self.sinks)
        return self.outputs * int(active.sum()) // active.numel()

    def total(self, masks: Masks) -> float:
        """Cost of the layer with these channels (bool [C] for each group)."""
        return self.unit * self.inputs(masks) * self.active_outputs(masks)


def layer_cost(layer: nn.Module, groups: Mapping[str, Members], rates: Tensor, uses: int) -> LayerCost:
    """The cost of a layer whose input channels have these rates and each of whose weights is used so often."""
    names = {id(members.group): name for name, members in groups.items()}
    sources, sinks = (
        () if group is None else tuple(names[id(part)] for part in group.parts)
        for group in (carried(layer, "in_group"), carried(layer, "out_group"))
    )
    return LayerCost(sources, sinks, rates, _reached(layer), weights_per_pair(layer) * uses, is_depthwise(layer))


def channel_costs(layers: Iterable[LayerCost], masks: Masks) -> dict[str, Tensor]:
    """What each channel costs beside the active ones, its filters and what reads it: float64 [C] by group."""
    costs = {name: torch.zeros(mask.numel(), dtype=torch.float64, device="cpu") for name, mask in masks.items()}
    for layer in layers:
        if not layer.depthwise:
            for sink in layer.sinks:
                costs[sink] += layer.unit * layer.inputs(masks)
        if layer.sources:
            sizes = [masks[source].numel() for source in layer.sources]
            for source, rates in zip(layer.sources, layer.rates.split(sizes), strict=True):
                costs[source] += layer.unit * layer.active_outputs(masks) * rates
    return costs


def connections(model: nn.Module, groups: Mapping[str, Members]) -> list[LayerCost]:
    """Weights of each of the :func:`weight_layers`: the cost whose :func:`active_share` is the connectivity."""
    return [
        layer_cost(layer, groups, torch.ones(input_channels(layer), dtype=torch.float64, device="cpu"), 1)
        for layer in weight_layers(model).values()
    ]


def total(layers: Iterable[LayerCost], masks: Masks) -> float:
    """Cost of a network with these channels."""
    return sum(layer.total(masks) for layer in layers)


def active_share(layers: Iterable[LayerCost], masks: Masks) -> float:
    """Cost of a network with these channels / with all of them."""
    layers = list(layers)
    return total(layers, masks) / total(layers, {name: torch.ones_like(mask) for name, mask in masks.items()})


def _joined(masks: Masks, names: tuple[str, ...]) -> Tensor:
    return torch.cat([masks[name] for name in names])


def input_channels(layer: nn.Module) -> int:
    """Full number of input channels (features, for a linear layer without a group)."""
    group = carried(layer, "in_group")
    if group is not None:
        return group.num_channels
    return layer.in_channels if isinstance(layer, CONVOLUTIONS) else layer.in_features


def weights_per_pair(layer: nn.Module) -> int:
    """Weights that connect one input channel with one output channel."""
    if isinstance(layer, CONVOLUTIONS):
        return math.prod(layer.kernel_size)
    return layer.in_features // input_channels(layer)


def _reached(layer: nn.Module) -> int:
    """Output channels that one input channel is connected with."""
    return layer.out_channels // layer.groups if isinstance(layer, CONVOLUTIONS) else layer.out_features


def weight_uses(layer: nn.Module, x: Tensor, output: Tensor) -> int:
    """How often a pass uses each weight: the output's values per channel (time x samples x space); those of the input
    ``x`` where the layer is a transposed convolution, which sends each of its inputs to a whole kernel of outputs."""
    z = x if isinstance(layer, _TRANSPOSED) else output
    return z.numel() // z.shape[channel_dim(layer)]


class Inputs(NamedTuple):
    """What a layer reads in one pass.

    Attributes:
        nonzero: int64 [active input channels], values that are not 0.
        spikes: int64, the same shape, spikes that its values stand for.
        positions: values per channel.
        window: spikes that a value of 1 stands for: 1 where all values are 0 or 1; 4, 9 or 16 where they are averages
            of so many, as behind an average pool; 0 where they are no spikes, which ``spikes`` then doesn't count.
    """

    nonzero: Tensor
    spikes: Tensor
    positions: int
    window: int


def inputs_of(layer: nn.Module, x: Tensor) -> Inputs:
    """What a layer reads of its active input channels."""
    dim = channel_dim(layer)
    group = carried(layer, "in_group")
    block = 1
    if group is not None:
        if isinstance(layer, nn.Linear):
            block = layer.in_features // group.num_channels
        if not group.all_active and x.shape[dim] == group.num_channels * block:
            entries = Axis(group, 1, block).entries(group.active)
            x = x.index_select(dim, entries.to(x.device))
    other = [d for d in range(x.dim()) if d != x.dim() + dim]

    def by_channel(counted: Tensor) -> Tensor:
        summed = counted.sum(other, dtype=torch.int64) if other else counted.long()
        return summed.view(-1, block).sum(1)

    nonzero = by_channel(x != 0)
    window = _window(x)
    spikes = by_channel((x * window).round()) if window > 1 else nonzero
    return Inputs(nonzero, spikes, x.numel() // nonzero.numel(), window)


def _window(x: Tensor) -> int:
    """See :class:`Inputs`."""
    if (x == 1).sum() == (x != 0).sum():
        return 1
    if x.min() < 0 or x.max() > 1:
        return 0
    for window in _WINDOWS:
        scaled = x * window
        if (scaled - scaled.round()).abs().max() < _ROUNDING * window:
            return window
    return 0
