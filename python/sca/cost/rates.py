"""What the layers of a network read while it trains: the rates that SynOps depend on."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..structure.groups import Members, carried
from ..structure.hooks import own
from .layers import LayerCost, inputs_of, layer_cost, weight_layers, weight_uses

__all__ = ["RateRecorder"]


class RateRecorder:
    """Counts the inputs of each layer, which decide on SynOps, in the training passes between start() and stop().

    Attributes:
        counts: int64 [2 + input channels] by layer: uses of each weight, positions per input channel, spikes of each
            channel, of averages those that they stand for. Inputs that are no spikes count throughout: each of their
            values costs a multiplication.
        rates: spikes per value of each input channel, float64 [input channels] by layer; a dormant channel keeps its
            last.
        dense_rates: the first ``rates``, which are those of the dense network where nothing was pruned before.
    """

    def __init__(self, model: nn.Module, groups: Mapping[str, Members]) -> None:
        self.model, self.layers = model, weight_layers(model)
        self.groups = groups
        self.counts: dict[str, Tensor] = {}
        self.rates: dict[str, Tensor] = {}
        self.dense_rates: dict[str, Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def start(self) -> None:
        """Count from now on."""
        if not self._handles:
            self._handles = [
                layer.register_forward_hook(functools.partial(self._count, name)) for name, layer in self.layers.items()
            ]

    def stop(self) -> None:
        """Stop counting; no hook stays behind."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @own
    @torch.no_grad()
    def _count(self, name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if not (layer.training or self.model.training):  # a frozen layer may be in eval mode while others train
            return
        group = carried(layer, "in_group")
        _, spikes, positions, window = inputs_of(layer, inputs[0])
        if not window:
            spikes = torch.full_like(spikes, positions)
        if group is not None:
            spikes = spikes.new_zeros(group.num_channels).index_copy_(0, group.active.to(spikes.device), spikes)
        counts = torch.cat([spikes.new_tensor([weight_uses(layer, inputs[0], output), positions]), spikes])
        self.counts[name] = self.counts[name] + counts if name in self.counts else counts

    def take(self, counts: Mapping[str, Tensor]) -> list[LayerCost]:
        """SynOps of the passes that were counted, as a cost by layer; updates the rates and forgets the counts.

        Args:
            counts: this recorder's, summed over all ranks, CPU.

        Raises:
            RuntimeError: a layer was not run.
        """
        self.counts = {}
        for name, layer in self.layers.items():
            if name not in counts:
                raise RuntimeError(
                    f"layer {name!r}: no input was counted, so its SynOps are unknown; "
                    "run the model in training mode before scheduler.step() (by itself, where it is compiled: a "
                    "compiled function that calls it passes by hooks)"
                )
            rates = counts[name][2:].double() / counts[name][1]
            group = carried(layer, "in_group")
            if group is not None and name in self.rates:
                rates = torch.where(group.mask(), rates, self.rates[name])
            self.rates[name] = rates
        if not self.dense_rates:
            self.dense_rates = dict(self.rates)
        return [
            layer_cost(layer, self.groups, self.rates[name], int(counts[name][0]))
            for name, layer in self.layers.items()
        ]

    def dense(self, costs: Iterable[LayerCost]) -> float:
        """SynOps of the dense network, at the rates it had, in the passes that ``costs`` (of all layers) describes."""
        return sum(
            cost.unit * float(rates.sum()) * cost.outputs
            for cost, rates in zip(costs, (self.dense_rates[name] for name in self.layers), strict=True)
        )
