"""How important an active channel is: one file each, found by its ``CRITERIA`` entry.

A criterion is a function of a :class:`GroupContext` that returns a float64 tensor [C] on the CPU: higher is more
important. What it says of dormant channels is never read. One that needs more than activity is a :class:`Criterion`,
which sees single passes: the neurons' spikes and their gradients, or those of batch norms.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from sca_kernels.nn import ChannelGroup

from ...registry import collect

__all__ = ["CRITERIA", "Criterion", "GroupContext", "NormObservation", "Observation", "as_criterion"]


@dataclass(frozen=True)
class Observation:
    """What one pass showed of one group: A active channels of one neuron layer, on the layer's device.

    Attributes:
        spikes: [T, N, A, *S], zeros and ones, or what :func:`sca_kernels.nn.set_analog` has neurons give out; detached.
        gradient: dL/dspikes, of the same shape; None where the criterion observes spikes alone.
        potentials: gives the membrane potentials before the reset, [T, N, A, *S] float32; they are computed anew, step
            by step, which takes about as long as the layer's pass.
    """

    spikes: Tensor
    gradient: Tensor | None
    potentials: Callable[[], Tensor]


@dataclass(frozen=True)
class NormObservation:
    """What one backward pass showed of one group: A active channels of one of its batch norms, on its device; detached.

    Attributes:
        weight, bias: gamma and beta, [A]; a batch norm that has no beta has zeros.
        weight_gradient, bias_gradient: dL/dgamma and dL/dbeta, of the same shape.
    """

    weight: Tensor
    bias: Tensor
    weight_gradient: Tensor
    bias_gradient: Tensor


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
        gradient: float64 [C], sum over the group's batch norms of |dL/dgamma| in the probes that were taken; None where
            there were none.
        observed: what the criterion's ``observe`` returned, by name, summed over the passes that it saw, over the
            group's neuron layers and over all ranks; the active channels alone.
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
    gradient: Tensor | None = None
    observed: Mapping[str, Tensor] = field(default_factory=dict)

    def spread(self, values: Tensor) -> Tensor:
        """Values of the active channels, [A], as float64 [C] with zeros for the dormant ones."""
        full = torch.zeros(self.group.num_channels, dtype=torch.float64)
        return full.index_copy_(0, self.active, values.double())

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


class Criterion(ABC):
    """A criterion that looks at single passes: its objects are entries of ``CRITERIA``, or what a scheduler is given.

    Attributes:
        name: how errors and logs call it.
        observes: ``"spikes"``, ``"gradients"`` (of the spikes: the backward pass is waited for) or ``"norms"`` (the
            gradients of the batch norms' weights and biases); None for nothing but the activity that is recorded all
            the time.
        observed_steps: how many steps before each update are looked at. All other steps cost nothing.

    One that observes has a method ``observe(seen)`` of an :class:`Observation`, or of a :class:`NormObservation` where
    that is what it observes: sums over one pass, by name, tensors whose shapes depend on the number of active channels
    alone, int64 or floating-point (added up in float64).
    """

    name: str = ""
    observes: ClassVar[str | None] = None
    observed_steps: int = 1

    @abstractmethod
    def __call__(self, group: GroupContext) -> Tensor:
        """Importance of the group's channels: float64 [C] on the CPU."""


class _Function(Criterion):
    """A plain function as a criterion."""

    def __init__(self, function: Callable[[GroupContext], Tensor], name: str) -> None:
        self.function, self.name = function, name

    def __call__(self, group: GroupContext) -> Tensor:
        return self.function(group)


def as_criterion(function: Callable[[GroupContext], Tensor], name: str) -> Criterion:
    """The criterion that an entry is: itself, or a function that observes nothing.

    Raises:
        TypeError, ValueError: it observes something that there is not, or has no method for it.
    """
    if not isinstance(function, Criterion):
        return _Function(function, name)
    if function.observes not in (None, "spikes", "gradients", "norms"):
        raise ValueError(
            f"criterion: {name!r} expected to observe 'spikes', 'gradients', 'norms' or None, not {function.observes!r}"
        )
    if function.observes is not None and not callable(getattr(function, "observe", None)):
        raise TypeError(f"criterion: {name!r} observes {function.observes}, and has no method observe")
    return function


CRITERIA: dict[str, Callable[[GroupContext], Tensor]] = collect(sys.modules[__name__], "CRITERIA")
