"""How often neurons fire, layer by layer."""

from __future__ import annotations

import torch
from torch import nn

from sca_kernels import nn as snn

from ..structure.attach import has_groups
from ..structure.groups import find_groups

__all__ = ["FiringRate"]


class FiringRate:
    """Spikes of each neuron layer and the (neuron, step, sample) positions at which they could have been, read off the
    counts that the neurons keep anyway. A layer is called as its channel group where no other layer shares that, else
    by its module's name.

    Neurons without an :class:`sca_kernels.nn.Activity` are given one.
    """

    def __init__(self, model: nn.Module) -> None:
        groups = find_groups(model).items() if has_groups(model) else ()
        alone = {next(iter(members.neurons)): name for name, members in groups if len(members.neurons) == 1}
        self._neurons = {alone.get(name, name): m for name, m in model.named_modules() if hasattr(m, "activity")}
        for neuron in self._neurons.values():
            neuron.activity = neuron.activity or snn.Activity(training_only=True)
        self._seen: dict[str, tuple[int, int]] = {}

    def mark(self) -> None:
        """Count from here on. Needed after anything that reset the counts (a pruning step)."""
        self._seen = self._totals()

    def since_mark(self) -> tuple[int, int]:
        """Spikes and positions of all layers since the last mark."""
        counts = self.layers_since_mark().values()
        return sum(spikes for spikes, _ in counts), sum(positions for _, positions in counts)

    def layers_since_mark(self) -> dict[str, tuple[int, int]]:
        """Layer -> spikes and positions since the last mark."""
        counts = {}
        for name, (spikes, positions) in self._totals().items():
            spikes_before, positions_before = self._seen.get(name, (0, 0))
            counts[name] = spikes - spikes_before, positions - positions_before
        return counts

    def _totals(self) -> dict[str, tuple[int, int]]:
        counted = {n: m.activity for n, m in self._neurons.items() if m.activity.positions is not None}
        if not counted:
            return {}
        # one transfer for all layers
        sums = torch.stack([torch.stack((a.spike_count.sum(), a.positions.sum())) for a in counted.values()])
        return {name: (spikes, positions) for name, (spikes, positions) in zip(counted, sums.tolist(), strict=True)}
