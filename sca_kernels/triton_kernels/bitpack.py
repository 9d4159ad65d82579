"""Spikes as bits in Triton (twin of :mod:`sca_kernels.reference.bitpack`): one program packs or unpacks ``_BYTES``
bytes."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..spikes import check_earlier, check_launched, flag

_BYTES = 512


@triton.jit
def _elements(numel, BYTES: tl.constexpr, WHOLE: tl.constexpr):
    """Bytes [BYTES, 1] and elements [BYTES, 8] of this program, and which elements exist. WHOLE: none of a byte's eight
    is missing; a mask per byte leaves the accesses vectorised."""
    byte = (tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES))[:, None]
    element = byte * 8 + tl.arange(0, 8)[None, :]
    if WHOLE:
        return byte, element, tl.broadcast_to(byte * 8 < numel, element.shape)
    else:
        return byte, element, element < numel


@triton.jit(do_not_specialize=["numel"])
def pack_kernel(spikes, packed, valid, numel: tl.int64, BYTES: tl.constexpr, WHOLE: tl.constexpr):
    byte, element, exists = _elements(numel, BYTES, WHOLE)
    s = tl.load(spikes + element, mask=exists, other=0.0).to(tl.float32)
    bits = (s == 1).to(tl.int32) << tl.arange(0, 8)[None, :]
    tl.store(packed + byte, tl.sum(bits, 1, keep_dims=True).to(tl.uint8), mask=byte * 8 < numel)
    if tl.sum(((s != 0) & (s != 1)).to(tl.int32)) > 0:  # true for NaN, too
        tl.store(valid, 0)


@triton.jit(do_not_specialize=["numel"])
def unpack_kernel(packed, spikes, numel: tl.int64, BYTES: tl.constexpr, WHOLE: tl.constexpr):
    byte, element, exists = _elements(numel, BYTES, WHOLE)
    bits = tl.load(packed + byte, mask=byte * 8 < numel, other=0).to(tl.int32)
    s = ((bits >> tl.arange(0, 8)[None, :]) & 1).to(tl.float32)
    tl.store(spikes + element, s.to(spikes.dtype.element_ty), mask=exists)


def pack(spikes: Tensor) -> Tensor:
    """As :meth:`sca_kernels.backends.base.Backend.pack_spikes`, but that a GPU is not waited for: that it has met
    another value is told by a later call, this one or :func:`unpack`."""
    check_earlier(spikes.device)
    packed = torch.empty(triton.cdiv(spikes.numel(), 8), dtype=torch.uint8, device=spikes.device)
    _launch(pack_kernel, spikes, spikes.numel(), spikes=spikes, packed=packed, valid=flag(spikes.device))
    check_launched(spikes.device)
    return packed


def unpack(packed: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
    """As :meth:`sca_kernels.backends.base.Backend.unpack_spikes`."""
    check_earlier(packed.device)
    spikes = torch.empty(numel, dtype=dtype, device=packed.device)
    _launch(unpack_kernel, packed, numel, packed=packed, spikes=spikes)
    return spikes


def _launch(kernel, on: Tensor, numel: int, **tensors: Tensor) -> None:
    with torch.cuda.device_of(on):
        kernel[(triton.cdiv(numel, 8 * _BYTES),)](
            **tensors, numel=numel, BYTES=_BYTES, WHOLE=numel % 8 == 0, enable_fp_fusion=False
        )
