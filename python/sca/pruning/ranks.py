"""Several processes, one structure: sums over the ranks of torch.distributed, and the proof that all chose alike."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["RanksDiffer", "require_member", "require_same_masks", "sum_over_ranks"]


class RanksDiffer(RuntimeError):
    """The ranks of a distributed run chose different channels."""


def require_member(group: Any) -> None:
    """See to it that a process group can be summed over.

    Raises:
        TypeError: it is none.
        ValueError: torch.distributed is not initialised, or this process is not in the group.
    """
    if group is None:
        return
    kind = getattr(torch.distributed, "ProcessGroup", ())  # not in builds without torch.distributed
    non_member = getattr(getattr(torch.distributed, "GroupMember", None), "NON_GROUP_MEMBER", object())
    if group is not non_member and not isinstance(group, kind):
        raise TypeError(f"process_group: expected a torch.distributed group or None, got {type(group).__name__}")
    if not _is_distributed():
        raise ValueError("process_group: expected None, since torch.distributed is not initialised")
    if group is non_member or torch.distributed.get_rank(group) < 0:
        raise ValueError("process_group: expected a group that this process is in")


def sum_over_ranks(tensors: Mapping[str, Tensor], group: Any = None) -> dict[str, Tensor]:
    """Sums over all ranks of torch.distributed, or of a group of them (the tensors themselves without it), on the CPU.

    Every rank must hold the same names and shapes, int64 or float64; one collective for each dtype.
    """
    if not _is_distributed():
        return {name: tensor.cpu() for name, tensor in tensors.items()}
    summed: dict[str, Tensor] = {}
    for dtype in (torch.int64, torch.float64):
        names = sorted(name for name, tensor in tensors.items() if tensor.dtype == dtype)
        if names:
            flat = torch.cat([tensors[name].flatten() for name in names])
            torch.distributed.all_reduce(flat, group=group)
            parts = flat.cpu().split([tensors[name].numel() for name in names])
            summed.update({name: part.view_as(tensors[name]) for name, part in zip(names, parts, strict=True)})
    return summed


def require_same_masks(masks: Mapping[str, Tensor], device: torch.device, group: Any = None) -> None:
    """Compare masks (bool, CPU; by group) over all ranks, or those of a process group, by a digest of them.

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
    gathered = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size(group))]
    torch.distributed.all_gather(gathered, own, group=group)
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
