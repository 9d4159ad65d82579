"""Spiking channel activity, the criterion of Li et al. (ICML 2024)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from . import Criterion, GroupContext, Observation


def sca(group: GroupContext) -> Tensor:
    """Mean over time, samples and space of s + |v - v_reset|, v the potential after the reset.

    With a hard reset to 0, a threshold of 1 and no potential below -1 that is the L1 norm of the potential h before the
    reset, clipped at the threshold: ``min(|h|, 1)``. With another threshold a spike counts 1, not the threshold; with
    a soft reset what stays above it counts as well. |v| alone would rank a busy channel, reset at every spike, below a
    silent one. ``sca_unclipped`` takes |h| itself.
    """
    return group.mean(group.spike_count.double() + group.membrane_l1)


class Unclipped(Criterion):
    """Mean over time, samples and space of |h|, h the potential before the reset, however far above the threshold it
    is. The kernels add up no h: it is computed anew for the passes of the step before an update.
    """

    name = "sca_unclipped"
    observes = "spikes"

    def observe(self, seen: Observation) -> Mapping[str, Tensor]:
        h = seen.potentials().abs()
        others = [dim for dim in range(h.dim()) if dim != 2]
        return {
            "h_l1": h.sum(others, dtype=torch.float64),
            "positions": torch.tensor([h.numel() // h.shape[2]], device=h.device),
        }

    def __call__(self, group: GroupContext) -> Tensor:
        return group.spread(group.observed["h_l1"] / group.observed["positions"])


CRITERIA = {"sca": sca, "sca_unclipped": Unclipped()}
