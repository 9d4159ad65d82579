"""Activation checkpointing (Chen et al., 2016, arXiv 1604.06174): a block keeps its input, spikes as bits."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sca_kernels import functional as F

__all__ = ["recomputed"]

_Packed = tuple[Tensor, torch.Size, list[int], torch.dtype]


def recomputed(block: nn.Module, x: Tensor, *arguments: Any, spike_input: bool = True) -> Tensor:
    """``block(x, *arguments)`` that keeps nothing but x for the backward pass, and runs the block a second time there.

    Gradients, activity and running statistics are bit for bit those of ``block(x, *arguments)``. The block must neither
    draw random numbers nor hold state.

    Args:
        x: with ``spike_input``, zeros and ones only (checked), kept as bits; any strides.
    """
    packing = torch.autograd.graph.saved_tensors_hooks(_pack, _unpack) if spike_input else contextlib.nullcontext()
    with packing:  # of what checkpoint() itself keeps; within the block its own hooks hold
        return checkpoint(block, x, *arguments, use_reentrant=False, preserve_rng_state=False)


def _pack(spikes: Tensor) -> _Packed:
    order = sorted(range(spikes.dim()), key=lambda dim: -spikes.stride(dim))  # as they lie in memory
    stored = spikes.permute(order)
    return F.pack_spikes(stored), stored.shape, order, spikes.dtype


def _unpack(packed: _Packed) -> Tensor:
    bits, shape, order, dtype = packed
    return F.unpack_spikes(bits, shape, dtype).permute([order.index(dim) for dim in range(len(order))])
