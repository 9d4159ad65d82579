"""Firing rate."""

from __future__ import annotations

from torch import Tensor

from . import GroupContext


def rate(group: GroupContext) -> Tensor:
    """Spikes per neuron and time step."""
    return group.mean(group.spike_count)


CRITERIA = {"rate": rate}
