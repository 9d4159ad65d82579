"""Sums of activity that passes are added to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import describe
from ..ops.guards import SUMS
from .arguments import check_index, check_plain


class ActivitySums:
    """Sums of spikes and membrane potentials per channel, that :func:`neuron` and its like add a pass to, in place.

    Checked once, here, and not at every pass: the tensors must stay what they are but for their values.

    Args:
        spike_count: int64 [C], spikes.
        membrane_l1: float64 [C], ``|v[t] - v_reset|``.
        positions: int64 [C], T * N * prod(S) of every pass.
        channels: sorted unique int64 indices, where the channels of a pass stand in these; None: one for one.

    Raises:
        TypeError, ValueError: an argument is off; the message names it.
    """

    __slots__ = ("channels", "membrane_l1", "positions", "spike_count", "width")

    def __init__(
        self, spike_count: Tensor, membrane_l1: Tensor, positions: Tensor, channels: Tensor | None = None
    ) -> None:
        given = (spike_count, membrane_l1, positions)
        for (name, dtype), z in zip(SUMS.items(), given, strict=True):
            if not torch.compiler.is_compiling():
                check_plain(name, z)
            if z.dtype != dtype or z.dim() != 1 or z.shape != spike_count.shape or z.device != spike_count.device:
                expected = f"{dtype} {list(spike_count.shape)} on {spike_count.device}"
                raise ValueError(f"{name}: expected {expected}, got {describe(z)}")
            if (not z.is_contiguous() and z.stride(0) == 0) or (not torch.compiler.is_compiling() and z.is_neg()):
                raise ValueError(f"{name}: expected memory of its own per channel, got an expanded or negated tensor")
        self.spike_count, self.membrane_l1, self.positions = given
        self.channels = check_index("channels", channels, spike_count.numel(), spike_count, "spike_count")
        self.width = spike_count.numel() if channels is None else channels.numel()

    def has_checked(self, channels: Tensor, vectors: Sequence[Tensor | None]) -> bool:
        """Whether these channels are known to stand in vectors."""
        shape = self.spike_count.shape
        return channels is self.channels and all(z is None or z.shape == shape for z in vectors)


def check_activity(activity: ActivitySums, x: Tensor) -> None:
    """Whether a pass of x [T, N, C, *S] can be added."""
    if not isinstance(activity, ActivitySums):
        raise TypeError(f"activity: expected an ActivitySums or None, got {describe(activity)}")
    if activity.width != x.shape[2] or activity.spike_count.device != x.device:
        raise ValueError(
            f"activity: expected sums of {x.shape[2]} channels on {x.device}, got {activity.width} on "
            f"{activity.spike_count.device}"
        )
