"""Modes of the caller that what is made must not depend on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["plain_mode"]


@contextlib.contextmanager
def plain_mode() -> Iterator[None]:
    """Tensors made within are ordinary ones, on the CPU where nothing else is said, and need no gradient: the caller
    may be in inference mode, or have another default device."""
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        yield
