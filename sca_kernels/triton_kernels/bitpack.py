"""Spikes as bits in Triton (twin of :mod:`sca_kernels.reference.bitpack`): one program packs or unpacks ``_BYTES``
bytes."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiling import launch

_BYTES = 512
_MESSAGE = "spikes: expected zeros and ones only, got another value"


@triton.jit(do_not_specialize=["numel"])
def pack_kernel(spikes, packed, valid, numel: tl.int64, BYTES: tl.constexpr):
    byte = tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES)
    bit = tl.arange(0, 8)
    element = byte[:, None] * 8 + bit[None, :]
    s = tl.load(spikes + element, mask=element < numel, other=0.0)
    ones = (s == 1).to(tl.int32)
    tl.store(packed + byte, tl.sum(ones << bit[None, :], 1).to(tl.uint8), mask=byte * 8 < numel)
    if tl.sum(((s != 0) & (s != 1)).to(tl.int32)) > 0:  # also for NaN
        tl.store(valid, 0)


@triton.jit(do_not_specialize=["numel"])
def unpack_kernel(packed, spikes, numel: tl.int64, BYTES: tl.constexpr):
    byte = tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES)
    bit = tl.arange(0, 8)
    element = byte[:, None] * 8 + bit[None, :]
    bits = tl.load(packed + byte, mask=byte * 8 < numel, other=0).to(tl.int32)
    s = (bits[:, None] >> bit[None, :]) & 1
    tl.store(spikes + element, s.to(spikes.dtype.element_ty), mask=element < numel)


def pack(spikes: Tensor) -> Tensor:
    """As :meth:`sca_kernels.backends.base.Backend.pack_spikes`. On a GPU the values are checked without waiting:
    another value stops the device with an assertion."""
    size = triton.cdiv(spikes.numel(), 8)
    packed = spikes.new_empty(size, dtype=torch.uint8)
    valid = torch.ones((), dtype=torch.int32, device=spikes.device)
    launch(
        pack_kernel,
        triton.cdiv(size, _BYTES),
        spikes,
        spikes=spikes,
        packed=packed,
        valid=valid,
        numel=spikes.numel(),
        BYTES=_BYTES,
    )
    if spikes.is_cuda:
        torch._assert_async(valid, _MESSAGE)
    elif not valid:
        raise ValueError(_MESSAGE)
    return packed


def unpack(packed: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
    """As :meth:`sca_kernels.backends.base.Backend.unpack_spikes`."""
    spikes = packed.new_empty(numel, dtype=dtype)
    launch(
        unpack_kernel,
        triton.cdiv(packed.numel(), _BYTES),
        packed,
        packed=packed,
        spikes=spikes,
        numel=numel,
        BYTES=_BYTES,
    )
    return spikes
