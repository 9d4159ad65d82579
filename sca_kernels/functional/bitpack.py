"""Spikes as bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import checks, ops
from ..channels import numel
from ..checks import DTYPES, describe, is_plain
from ..ops.guards import guard_packed
from .arguments import check_backend


def pack_spikes(s: Tensor, backend: str | None = None) -> Tensor:
    """Spikes as bits: uint8 [ceil(numel / 8)], bit i of byte j is element 8 j + i in row-major order. ValueError if a
    value is neither 0 nor 1; on a GPU, which is not waited for, from a later call that packs or unpacks."""
    if not is_plain(s) or s.dtype not in DTYPES or s.is_meta:
        raise TypeError(f"s: expected a floating-point tensor of zeros and ones, got {describe(s)}")
    backend = check_backend(backend)
    try:
        return ops.pack_spikes(s.detach(), backend)
    except ValueError as error:
        if not str(error).startswith("spikes:"):
            raise
        raise ValueError("s: expected zeros and ones only, got another value") from None


def unpack_spikes(
    packed: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32, backend: str | None = None
) -> Tensor:
    """Inverse of :func:`pack_spikes`: a contiguous tensor of that shape and dtype.

    Raises:
        TypeError, ValueError: an argument is off; the message names it.
    """
    if not is_plain(packed) or packed.dtype != torch.uint8:
        raise TypeError(f"packed: expected a uint8 tensor, got {describe(packed)}")
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise TypeError(f"shape: expected a sequence of sizes, got {describe(shape)}")
    shape = [checks.integer("shape", size, 0, 2**62) for size in shape]
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        raise TypeError(f"dtype: expected a floating-point dtype, got {checks.shown(dtype)}")
    size = numel(shape)
    guard_packed("packed", packed, size)
    return ops.unpack_spikes(packed, size, dtype, check_backend(backend)).view(shape)
