"""Sums of spikes and membrane potentials per channel, collected while a network runs."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import checks
from ..functional import NeuronOutput
from ..layout import spatial_size
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

    def __init__(self, training_only: bool = True) -> None:
        self.training_only = checks.boolean("training_only", training_only)
        self.reset()

    def reset(self) -> None:
        """Forget everything recorded."""
        self.spike_count: Tensor | None = None
        self.membrane_l1: Tensor | None = None
        self.positions: Tensor | None = None

    def record(self, out: NeuronOutput, group: ChannelGroup | None) -> None:
        """Add one forward pass, whose channels are the group's active ones."""
        active = out.spike_count.numel()
        if self.spike_count is None:
            channels = active if group is None else group.num_channels
            device = out.spike_count.device
            with torch.inference_mode(False):  # passes of other modes will add to them
                self.spike_count = torch.zeros(channels, dtype=torch.int64, device=device)
                self.membrane_l1 = torch.zeros(channels, dtype=torch.float64, device=device)
                self.positions = torch.zeros(channels, dtype=torch.int64, device=device)
        seen = out.spikes.shape[0] * out.spikes.shape[1] * spatial_size(out.spikes)
        index = None if group is None else group.index(out.spike_count.device)
        if index is None:
            self.spike_count += out.spike_count
            self.membrane_l1 += out.membrane_l1
            self.positions += seen
        else:
            self.spike_count.index_add_(0, index, out.spike_count)
            self.membrane_l1.index_add_(0, index, out.membrane_l1.double())
            self.positions.index_add_(0, index, torch.full_like(index, seen))
