"""What a forward pass leaves behind in tensors that outlive it: running statistics of batch norm, and sums of activity;
and how plain torch changes them, for every backend that has no kernel for it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tracking(NamedTuple):
    """Tensors that a forward pass changes in place, once it has turned out well, and by how much.

    Attributes:
        seen: T * N * prod(S), values per channel.
        sums: of activity: spike counts (int64), membrane sums (float64) and values seen (int64); None: none are wanted.
        running: mean and variance, floating-point, that move towards the batch's; None: none are tracked.
        weight: of this batch in the running statistics; a number, or a tensor of one.
        batches: int64 [], a counter of batches that goes on by one; None where there is none.
        channels: sorted int64 [C], where the pass's channels stand in the sums and the running statistics, which may
            then have any size; None: one for one.
        finite_only: whether only finite statistics move the running ones.
    """

    seen: int
    sums: tuple[Tensor, Tensor, Tensor] | None = None
    running: tuple[Tensor, Tensor] | None = None
    weight: float | Tensor = 0.0
    batches: Tensor | None = None
    channels: Tensor | None = None
    finite_only: bool = False

    @property
    def unbiased(self) -> float:
        """Unbiased variance / biased variance of so many values."""
        return self.seen / max(self.seen - 1, 1)


def change(spike_count: Tensor, membrane_l1: Tensor, norm: Tensor | None, tracking: Tracking) -> None:
    """Do all of it behind a pass: by its activity, [C] each, and by mean and biased variance, the first two rows of
    ``norm`` [4, C] (None where no running statistics are tracked)."""
    if tracking.running is not None:
        track(norm[0], norm[1], tracking)
    if tracking.sums is not None:
        record(spike_count, membrane_l1, tracking)


def track(mean: Tensor, var: Tensor, tracking: Tracking) -> None:
    """Move running statistics towards those of a batch, [C] each, var biased: by its unbiased variance, as torch does.
    All of it is elementwise, so that no order of channels changes a bit."""
    weight, channels, finite_only = tracking.weight, tracking.channels, tracking.finite_only
    move(mean, var * tracking.unbiased, *tracking.running, weight, channels, finite_only)
    if tracking.batches is not None:
        tracking.batches.add_(1)


def move(
    mean: Tensor,
    var: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float | Tensor,
    channels: Tensor | None,
    finite_only: bool,
) -> None:
    """Move running statistics towards others, in the wider dtype of both.

    Args:
        mean, var: of the batch, [C].
        running_mean, running_var: floating-point [C], or with ``channels`` [any number].
        momentum: weight of the batch; a number or a tensor of one.
        channels: int64 [C], where the batch's channels stand in the running statistics; None: one for one.
        finite_only: what is not finite moves nothing.
    """
    finite = mean.isfinite() & var.isfinite() if finite_only else None
    for running, new in ((running_mean, mean), (running_var, var)):
        old = running if channels is None else running.index_select(0, channels)
        new = new if finite is None else torch.where(finite, new, old.to(new.dtype))
        weight = momentum.to(new.dtype) if isinstance(momentum, Tensor) else momentum
        if old.dtype == new.dtype:
            old.lerp_(new, weight)
        else:
            old.copy_(torch.lerp(old.to(new.dtype), new, weight))
        if channels is not None:
            running.index_copy_(0, channels, old)


def record(spike_count: Tensor, membrane_l1: Tensor, tracking: Tracking) -> None:
    """Add the activity of a pass, [C] each, to sums."""
    (spikes, potentials, positions), channels, seen = tracking.sums, tracking.channels, tracking.seen
    if channels is None:
        spikes.add_(spike_count)
        potentials.add_(membrane_l1)
        positions.add_(seen)
    else:
        spikes.index_add_(0, channels, spike_count)
        potentials.index_add_(0, channels, membrane_l1.double())
        positions.index_add_(0, channels, torch.full_like(channels, seen))
