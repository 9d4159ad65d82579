"""Active blocks of weights, read and written in place."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import backends
from ..checks import describe, is_plain
from .arguments import check_backend, check_plain, check_weight, is_sealed


def gather_weight(
    weight: Tensor, in_channels: Tensor | None = None, out_channels: Tensor | None = None, backend: str | None = None
) -> Tensor:
    """``weight[out_channels][:, in_channels]`` in the layout of the weight; not differentiable.

    Args:
        weight: dense [C_out, C_in, ...], contiguous or channels_last.
        in_channels, out_channels: unique int64 indices on its device, at least one; None = all.
        backend: see :func:`neuron`.

    Returns:
        A new tensor; the weight itself where both are None.

    Raises:
        TypeError, ValueError: an argument is off; the message names it.
    """
    channels = check_weight(weight, in_channels, out_channels)
    weight = weight.detach().resolve_neg()
    return backends.run(check_backend(backend), "gather_weight", weight, weight, None, channels, weight.dtype)[0]


def put_weight(
    block: Tensor,
    weight: Tensor,
    in_channels: Tensor | None = None,
    out_channels: Tensor | None = None,
    backend: str | None = None,
) -> None:
    """Write what :func:`gather_weight` reads, in place: ``weight[out_channels][:, in_channels] = block``.

    Args:
        block: [B, A, ...] in the weight's dtype.
        All others: see :func:`gather_weight`.

    Raises:
        TypeError, ValueError: an argument is off; the message names it, and nothing is written.
    """
    channels = check_weight(weight, in_channels, out_channels)
    check_plain("block", block)
    lists = zip(weight.shape[:2], channels[::-1], strict=True)
    expected = (*(size if index is None else index.numel() for size, index in lists), *weight.shape[2:])
    if not is_plain(block) or block.shape != expected or block.dtype != weight.dtype or block.device != weight.device:
        raise ValueError(f"block: expected {weight.dtype} {expected} on {weight.device}, got {describe(block)}")
    if is_sealed(weight):
        raise ValueError("weight: expected a tensor that can be changed, got one made in inference mode")
    found = backends.find(check_backend(backend), weight.device, weight.dtype)
    with torch.no_grad():
        full = weight.resolve_neg() if weight.is_neg() else weight  # lazily negated: by way of a copy
        found.put_weight(block.resolve_neg().detach(), full.detach(), channels)
        if full is not weight:
            weight.copy_(full)
        if torch.compiler.is_compiling() or not weight.is_inference():  # such a weight has no version
            torch.autograd.graph.increment_version(weight)
