"""Spikes as bits in plain PyTorch: bit i of byte j is element 8 j + i, the last byte filled up with zeros."""

from __future__ import annotations

import torch
from torch import Tensor


def pack(spikes: Tensor) -> Tensor:
    """Pack a flat tensor of zeros and ones into uint8 [ceil(n / 8)]; ValueError where another value is met."""
    ones = spikes == 1
    if not torch.equal(ones.to(spikes.dtype), spikes):
        raise ValueError("spikes: expected zeros and ones only, got another value")
    bits = torch.nn.functional.pad(ones.to(torch.uint8), (0, -spikes.numel() % 8)).view(-1, 8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(1, dtype=torch.uint8)


def unpack(packed: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
    """Inverse of :func:`pack`: a flat tensor of ``numel`` zeros and ones."""
    bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    return bits.flatten()[:numel].to(dtype)
