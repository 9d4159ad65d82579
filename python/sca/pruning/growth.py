"""What promise a dormant channel holds: the names that ``regrow`` knows.

A function of a :class:`sca.pruning.criteria.GroupContext` that returns a float64 tensor [C] on the CPU: higher is more
promising. One with a true attribute ``needs_probe`` reads ``group.gradient`` and is asked only where a probe was taken.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .criteria import GroupContext

__all__ = ["REGROWTH", "needs_probe"]


def bn_gamma(group: GroupContext) -> Tensor:
    """``|dL/dgamma|`` of the batch-norm weight in a probe (Li et al., ICML 2024, section 4.3)."""
    return group.gradient


bn_gamma.needs_probe = True


def random(group: GroupContext) -> Tensor:
    """Uniform in [0, 1), from the scheduler's own seeded generator."""
    return torch.rand(group.group.num_channels, dtype=torch.float64, generator=group.generator)


#: name -> promise of a group's channels
REGROWTH: dict[str, Callable[[GroupContext], Tensor]] = {"bn_gamma": bn_gamma, "random": random}


def needs_probe(growth: Callable[[GroupContext], Tensor]) -> bool:
    """Whether it reads the gradients of a probe."""
    return bool(getattr(growth, "needs_probe", False))
