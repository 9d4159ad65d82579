"""What forward passes leave behind, in place: running statistics of batch norm, and sums of activity. In plain torch,
for every backend; all of it is elementwise, so that no order of channels changes a bit."""

from __future__ import annotations

import torch
from torch import Tensor


def track(
    mean: Tensor,
    var: Tensor,
    count: int | Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float | Tensor,
    channels: Tensor | None,
    finite_only: bool,
) -> None:
    """Move running statistics towards those of a batch of ``count`` values per channel, as torch does: by its unbiased
    variance.

    Args:
        mean, var: of the batch, [C]; var biased.
        running_mean, running_var: floating-point [C], or with ``channels`` [any number].
        momentum: weight of the batch; a number or a tensor of one.
        channels: int64 [C], where the batch's channels stand in the running statistics; None: one for one.
        finite_only: what is not finite moves nothing.
    """
    others = (count - 1).clamp(min=1) if isinstance(count, Tensor) else max(count - 1, 1)
    move(mean, var * (count / others), running_mean, running_var, momentum, channels, finite_only)


def move(
    mean: Tensor,
    var: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float | Tensor,
    channels: Tensor | None,
    finite_only: bool,
) -> None:
    """Move running statistics towards others, in the wider dtype of both; arguments as of :func:`track`."""
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


def record(
    spike_count: Tensor,
    membrane_l1: Tensor,
    seen: int,
    sums: tuple[Tensor, Tensor, Tensor],
    channels: Tensor | None,
) -> None:
    """Add the activity of a pass to sums.

    Args:
        spike_count, membrane_l1: of the pass, [C].
        seen: T * N * prod(S), values per channel.
        sums: spike counts (int64), membrane sums (float64) and values (int64), [C], or with ``channels`` [any number].
        channels: int64 [C], where the pass's channels stand in the sums; None: one for one.
    """
    spikes, potentials, positions = sums
    if channels is None:
        spikes.add_(spike_count)
        potentials.add_(membrane_l1)
        positions.add_(seen)
    else:
        spikes.index_add_(0, channels, spike_count)
        potentials.index_add_(0, channels, membrane_l1.double())
        positions.index_add_(0, channels, torch.full_like(channels, seen))
