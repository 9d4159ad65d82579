"""Neurons of other libraries, as ours: what a foreign module becomes an object of, in front of its own class.

State, calls and attributes stay as the library has them; charge, fire, reset and their gradient are ours.
"""

from __future__ import annotations

import logging
from typing import Any

from torch import Tensor

from sca_kernels import nn as snn
from sca_kernels.nn.batch_norm import NeuronBehindNorm
from sca_kernels.nn.neuron import NeuronModule

from .layers import HeldBatchNorm

__all__ = ["ConvertedNeuron", "FusedNeuron"]

logger = logging.getLogger(__name__)


class ConvertedNeuron:
    """A neuron of another library or of a user's own code, in front of its class.

    Attributes:
        time: "TN", "NT" or "single", how its input lies; None: as its ``step_mode`` says (SpikingJelly's "m" or "s").
        stateful: whether a call begins where the last one ended, until it is reset.
    """

    time: str | None
    v: Tensor | None

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        time = self.time or ("TN" if self.step_mode == "m" else "single")
        steps = x.unsqueeze(0) if time == "single" else x.transpose(0, 1) if time == "NT" else x
        if self.v is not None and self.v.shape != steps.shape[1:]:
            logger.info("a batch of another size, %s after %s: states start anew", [*x.shape[1:]], [*self.v.shape])
            self.reset()
        spikes = super().forward(steps)
        if time == "NT":
            return spikes.transpose(0, 1).contiguous()
        return spikes.squeeze(0) if time == "single" else spikes

    def channel_dim(self, x: Tensor) -> int:
        """The dimension of the channels."""
        return 1 if self.time == "single" or (self.time is None and self.step_mode == "s") else 2

    def detach(self) -> None:
        """Cut the graph of the state."""
        snn.detach(self)

    def reset(self) -> None:
        """Forget the state."""
        NeuronModule.reset(self)


class FusedNeuron(NeuronBehindNorm):
    """A neuron that computes the batch norm in front of it, too, whose parameters stay where they are.

    Attributes:
        norm: a tuple of the batch norm, which would be a child otherwise.
    """

    norm: tuple[HeldBatchNorm]

    @property
    def normalisation(self) -> HeldBatchNorm:
        return self.norm[0]
