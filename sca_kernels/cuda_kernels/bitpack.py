"""Spikes as bits (twin of :mod:`sca_kernels.reference.bitpack`)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..gpu.plan import ceil_div
from ..spikes import check_earlier, check_launched, flag
from .parameters import NAMES, THREADS, BitpackParameters, Launch, address

_BYTES_PER_BLOCK = 4 * THREADS


def pack(launch: Launch, spikes: Tensor) -> Tensor:
    """As :meth:`sca_kernels.backends.base.Backend.pack_spikes`, but that the device is not waited for: that it has met
    another value is told by a later call, this one or :func:`unpack`."""
    check_earlier(spikes.device)
    spikes = spikes.contiguous()
    packed = spikes.new_empty(ceil_div(spikes.numel(), 8), dtype=torch.uint8)
    _run(launch, "pack_bits", spikes, packed, flag(spikes.device))
    check_launched(spikes.device)
    return packed


def unpack(launch: Launch, packed: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
    """As :meth:`sca_kernels.backends.base.Backend.unpack_spikes`."""
    check_earlier(packed.device)
    spikes = packed.new_empty(numel, dtype=dtype)
    _run(launch, "unpack_bits", spikes, packed.contiguous(), None)
    return spikes


def _run(launch: Launch, kernel: str, spikes: Tensor, packed: Tensor, valid: Tensor | None) -> None:
    vector = 16 // spikes.element_size() if spikes.data_ptr() % 16 == 0 else 1
    parameters = BitpackParameters(spikes.numel(), address(spikes), address(packed), address(valid))
    grid = ceil_div(packed.numel(), _BYTES_PER_BLOCK)
    if grid:
        launch(f"sca::{kernel}<{NAMES[spikes.dtype]}, {vector}>", grid, THREADS, 0, parameters, spikes)
