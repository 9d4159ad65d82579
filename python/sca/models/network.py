"""Base of the families: direct encoding of still images, and blocks that checkpointing may run a second time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sca_kernels import checks
from sca_kernels.nn.analog import FollowsAnalog

from .recompute import recomputed

__all__ = ["Network"]


class Network(FollowsAnalog, nn.Module, ABC):
    """A network of blocks over ``[T, N, ...]``.

    Attributes:
        time_steps: T, how often a still image is presented.
        checkpointing: whether blocks keep their input alone; may be changed at any time between two passes.
    """

    time_steps: int

    def init_checkpointing(self, checkpointing: bool, neuron_arguments: dict[str, Any]) -> None:
        """ValueError where the neurons hold a state, which a second pass would change."""
        checks.boolean("checkpointing", checkpointing)
        if checkpointing and neuron_arguments.get("stateful"):
            raise ValueError(
                "checkpointing: expected False beside stateful=True, whose state a second pass would change"
            )
        self.checkpointing = checkpointing

    def run(self, block: nn.Module, x: Tensor, *arguments: Any, spike_input: bool = True) -> Tensor:
        """``block(x, *arguments)``, :func:`recomputed` if that is wanted and a gradient is."""
        if self.checkpointing and torch.is_grad_enabled():
            return recomputed(block, x, *arguments, spike_input=spike_input and self.analog is None)
        return block(x, *arguments)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of every time step; their mean over the first dimension predicts.

        Args:
            x: ``[N, C, H, W]``: a still image, presented for ``time_steps`` steps (the first convolution is computed
                once), or ``[T, N, C, H, W]``: a sequence. float32 or bfloat16; channels_last is fastest.

        Returns:
            ``[T, N, num_classes]``.

        Raises:
            ValueError: x has another rank.
        """
        if not checks.is_traced(x):
            checks.instance("x", x, Tensor, "a tensor [N, C, H, W] or [T, N, C, H, W]")
        if x.dim() not in (4, 5):
            raise ValueError(f"x: expected [N, C, H, W] or [T, N, C, H, W], got {list(x.shape)}")
        return self.logits(x.unsqueeze(0), self.time_steps) if x.dim() == 4 else self.logits(x, None)

    @abstractmethod
    def logits(self, x: Tensor, time_steps: int | None) -> Tensor:
        """Logits ``[T, N, num_classes]`` of a sequence ``[T, N, C, H, W]``; with ``time_steps``, of its one step,
        presented that often."""
