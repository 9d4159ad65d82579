"""Several processes, one structure: sums over the ranks of torch.distributed, and the proof that all chose alike."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["RanksDiffer", "require_same_masks", "sum_over_ranks"]


class RanksDiffer(RuntimeError):
    """The ranks of a distributed run chose different channels."""


def sum_over_ranks(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums over all ranks of torch.distributed (the tensors themselves without it), on the CPU.

    Every rank must hold the same names and shapes, int64 or float64; one collective for each dtype.
    """
    if not _is_distributed():
        return {name: tensor.cpu() for name, tensor in tensors.items()}
    summed: dict[str, Tensor] = {}
    for dtype in (torch.int64, torch.float64):
        names = sorted(name for name, tensor in tensors.items() if tensor.dtype == dtype)
        if names:
            flat = torch.cat([tensors[name].flatten() for name in names])
            torch.distributed.all_reduce(flat)
            parts = flat.cpu().split([tensors[name].numel() for name in names])
            summed.update({name: part.view_as(tensors[name]) for name, part in zip(names, parts, strict=True)})
    return summed


def require_same_masks(masks: Mapping[str, Tensor], device: torch.device) -> None:
    """Compare masks (bool, CPU; by group) over all ranks, by a digest of them.

    Args:
        device: where the ranks' backend wants its tensors.

    Raises:
        RanksDiffer: on every rank, naming those that are not with the majority (with rank 0 where there is none).
    """
    if not _is_distributed():
        return
    content = hashlib.blake2b(digest_size=8)
    for name in sorted(masks):
        content.update(f"{name} {masks[name].tolist()}".encode())
    own = torch.tensor([int.from_bytes(content.digest(), "little", signed=True)], device=device)
    gathered = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(gathered, own)
    digests = [int(digest) for digest in gathered]
    ((common, _),) = Counter(digests).most_common(1)
    others = [str(rank) for rank, digest in enumerate(digests) if digest != common]
    if others:
        raise RanksDiffer(
            f"rank {', '.join(others)} chose other channels than rank {digests.index(common)}: expected one structure"
            " on all, which the same settings, seed and weights give"
        )


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
