"""How important an active channel is: one file each, found by its ``CRITERIA`` entry.

A criterion is a function of a :class:`GroupContext` that returns a float64 tensor [C] on the CPU: higher is more
important. What it says of dormant channels is never read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sca_kernels.nn import ChannelGroup

from ...registry import collect

__all__ = ["CRITERIA", "Criterion", "GroupContext"]


@dataclass(frozen=True)
class GroupContext:
    """What a criterion may look at: one group of C channels and what was counted since the last update (CPU tensors).

    Attributes:
        group: the group itself, for :class:`sca.pruning.groups.Axis` and for what concatenations place beside it.
        name: of the group, for messages.
        active: int64, sorted indices of the active channels.
        spike_count: int64 [C], spikes of the group's neurons, over all ranks.
        membrane_l1: float64 [C], sum of |v| after the reset.
        positions: int64 [C], how many values (time x samples x space) these were summed over.
        producers: convolutions and linear layers whose output channels the group is.
        consumers: those whose input channels it is.
        norms: batch norms of the group, with a ``weight`` ([C], or of a concatenation of groups).
        generator: of the scheduler, for criteria that draw.
    """

    group: ChannelGroup
    name: str
    active: Tensor
    spike_count: Tensor
    membrane_l1: Tensor
    positions: Tensor
    producers: tuple[nn.Module, ...]
    consumers: tuple[nn.Module, ...]
    norms: tuple[nn.Module, ...]
    generator: torch.Generator

    def mean(self, total: Tensor) -> Tensor:
        """Mean per position of a sum over them, float64 [C]; 0 where there is none (a channel that is dormant).

        Raises:
            RuntimeError: an active channel was never computed in training mode since the last update.
        """
        if not self.positions[self.active].all():
            raise RuntimeError(
                f"group {self.name!r}: no activity was recorded since the last update; "
                "run the model in training mode before scheduler.step()"
            )
        return total.double() / self.positions.clamp(min=1)


Criterion = Callable[[GroupContext], Tensor]

CRITERIA: dict[str, Criterion] = collect(sys.modules[__name__], "CRITERIA")
