"""Batch statistics over the ranks of a torch.distributed group."""

from __future__ import annotations

import torch
from torch import Tensor


class _SumOverRanks(torch.autograd.Function):
    """Differentiable all_reduce: each rank's gradient is the sum of those that the ranks have for the sum."""

    @staticmethod
    def forward(ctx, x: Tensor, group) -> Tensor:
        ctx.group = group
        return _summed(x, group)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return _SumOverRanks.apply(gradient, ctx.group), None


def _summed(x: Tensor, group) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total, group=group)
    return total


def synchronized_moments(x: Tensor, count: int, process_group) -> tuple[Tensor, Tensor, Tensor]:
    """float64 mean and biased variance [C] of x [T, N, C, *S] over all ranks, and the number of values per channel;
    differentiable. A rank whose x is empty adds nothing.

    Args:
        count: values per channel on this rank (a step presented T times counts T times).
        process_group: a torch.distributed group, or True for the default one.
    """
    group = None if process_group is True else process_group
    dims = [d for d in range(x.dim()) if d != 2]
    z = x.double()
    n = torch.full((1,), float(count), dtype=torch.float64, device=x.device)
    presented = count / max(z[:, :, :1].numel(), 1)
    # Two rounds: the sum of squares about the common mean does not cancel.
    total = _SumOverRanks.apply(torch.cat([z.sum(dims) * presented, n]), group)
    mean, n_all = total[:-1] / total[-1], total[-1]
    centred = (z - mean.view(-1, *[1] * (x.dim() - 3))).square().sum(dims) * presented
    var = _SumOverRanks.apply(centred, group) / n_all
    return mean, var, n_all.detach()
