"""Chance: the baseline that every other criterion has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from . import GroupContext


def random(group: GroupContext) -> Tensor:
    """Uniform in [0, 1), from the scheduler's own seeded generator."""
    return torch.rand(group.positions.numel(), dtype=torch.float64, generator=group.generator)


CRITERIA = {"random": random}
