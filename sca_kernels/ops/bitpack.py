"""``sca_kernels::pack_spikes`` and ``unpack_spikes``: one bit per spike."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends import run
from .common import Operator
from .guards import guard_packed


@Operator
def pack_spikes(spikes: Tensor, backend: str) -> Tensor:
    return run(backend, "pack_spikes", spikes, spikes.flatten())


@pack_spikes.fake
def _(spikes, backend):
    return spikes.new_empty((spikes.numel() + 7) // 8, dtype=torch.uint8)


@Operator
def unpack_spikes(packed: Tensor, numel: int, dtype: torch.dtype, backend: str) -> Tensor:
    like = torch.empty(0, dtype=dtype, device=packed.device)
    return run(backend, "unpack_spikes", like, packed, numel, dtype)


@unpack_spikes.guarded
def _(packed, numel, dtype, backend):
    guard_packed("packed", packed, numel)


@unpack_spikes.fake
def _(packed, numel, dtype, backend):
    return packed.new_empty(numel, dtype=dtype)
