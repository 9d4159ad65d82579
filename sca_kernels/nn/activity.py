"""Sums of spikes and membrane potentials per channel, collected while a network runs."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks
from ..functional import ActivitySums, NeuronOutput
from ..layout import spatial_size
from ..ops.guards import SUMS
from ..tracking import Tracking, record
from .group import ChannelGroup


class Activity:
    """Activity sums of one neuron module since the last :meth:`reset` (Li et al., ICML 2024); in no state_dict.

    The SCA score of a channel is ``(spike_count + membrane_l1) / positions``.

    Args:
        training_only: ignore forward passes in eval mode.

    Attributes:
        spike_count: int64 [C], full width; None before the first forward pass, like the other two.
        membrane_l1: float64 [C].
        positions: int64 [C], T * N * prod(S) summed over the passes in which the channel was computed.
    """

    _sums: ActivitySums | None = None
    """See :meth:`begin`."""

    def __init__(self, training_only: bool = True) -> None:
        self.training_only = checks.boolean("training_only", training_only)
        self.reset()

    def reset(self) -> None:
        """Forget everything recorded."""
        self.spike_count: Tensor | None = None
        self.membrane_l1: Tensor | None = None
        self.positions: Tensor | None = None
        self._sums = None

    def begin(self, channels: int, device: torch.device, index: Tensor | None) -> ActivitySums:
        """The sums that a pass over ``index`` (None: all) of so many channels is to add to: these, or zeros, which
        :meth:`keep` makes these once it has."""
        sums = self._sums
        if self.spike_count is None:
            with torch.inference_mode(False):  # passes of other modes will add to them
                sums = ActivitySums(*(torch.zeros(channels, dtype=d, device=device) for d in SUMS.values()), index)
        elif sums is None or sums.spike_count is not self.spike_count or sums.channels is not index:
            sums = ActivitySums(self.spike_count, self.membrane_l1, self.positions, index)
        self._sums = sums
        return sums

    def keep(self) -> None:
        """Have the sums of the last :meth:`begin`, whose pass has ended well."""
        if self.spike_count is None and self._sums is not None:
            self.spike_count, self.membrane_l1 = self._sums.spike_count, self._sums.membrane_l1
            self.positions = self._sums.positions

    def record(self, out: NeuronOutput, group: ChannelGroup | None) -> None:
        """Add one forward pass, whose channels are the group's active ones."""
        seen = out.spikes.shape[0] * out.spikes.shape[1] * spatial_size(out.spikes)
        device = out.spike_count.device
        index = None if group is None else group.index(device)
        sums = self.begin(out.spike_count.numel() if group is None else group.num_channels, device, index)
        tracking = Tracking(seen, (sums.spike_count, sums.membrane_l1, sums.positions), channels=index)
        record(out.spike_count, out.membrane_l1, tracking)
        self.keep()
