"""Spiking channel activity, the criterion of Li et al. (ICML 2024)."""

from __future__ import annotations

from torch import Tensor

from . import GroupContext


def sca(group: GroupContext) -> Tensor:
    """Mean over time, samples and space of s + |v|: the membrane potential's L1 norm, before a hard reset, clipped at
    the threshold.

    |v| after the reset alone would rank a busy channel, reset at every spike, below a silent one.
    """
    return group.mean(group.spike_count.double() + group.membrane_l1)


CRITERIA = {"sca": sca}
