"""The precision that passes are computed in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["autocast"]


def autocast(precision: str, device: str) -> AbstractContextManager:
    """The context that a forward pass of this precision runs in."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=getattr(torch, precision))
