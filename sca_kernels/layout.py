"""Memory layouts of time-major activations [T, N, C, *S]: contiguous, channels_last, and what slicing or expanding
makes of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Strides(NamedTuple):
    """Strides, in elements, of an activation seen as [T, N, C, S] with all spatial dimensions collapsed into S."""

    t: int
    n: int
    c: int
    s: int


def state_dtype(x: Tensor) -> torch.dtype:
    """dtype of the membrane potential that goes with input ``x``."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def spatial_size(x: Tensor) -> int:
    """Number of positions per channel: the product of S in [T, N, C, *S]."""
    return math.prod(x.shape[3:])


def is_channels_last(x: Tensor) -> bool:
    """Whether channels are the innermost dimension of x [T, N, C, *S] (false where the question has no meaning)."""
    return x.dim() > 3 and x.stride(2) == 1 and x.shape[2] > 1 and spatial_size(x) > 1


def dense_strides(shape: Sequence[int], channels_last: bool) -> tuple[int, ...]:
    """Strides of a dense tensor [..., C, *S] whose channel dimension is 2 (time-major) in either layout."""
    strides = [1] * len(shape)
    step = shape[2] if channels_last else 1
    for d in range(len(shape) - 1, -1, -1):
        if channels_last and d == 2:
            continue
        strides[d] = step
        step = step * shape[d]
    return tuple(strides)


def empty_activation(x: Tensor, time_steps: int, dtype: torch.dtype | None = None) -> Tensor:
    """Uninitialised dense [time_steps, N, C, *S] in the memory layout and (unless given) the dtype of x."""
    shape = (time_steps, *x.shape[1:])
    return torch.empty_strided(
        shape, dense_strides(shape, is_channels_last(x)), dtype=dtype or x.dtype, device=x.device
    )


def empty_state(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Uninitialised dense [N, C, *S] in the memory layout of x [T, N, C, *S]."""
    strides = dense_strides((1, *x.shape[1:]), is_channels_last(x))[1:]
    return torch.empty_strided(x.shape[1:], strides, dtype=dtype, device=x.device)


def collapse(x: Tensor) -> Strides | None:
    """Strides of x [T, N, C, *S] with its spatial dimensions collapsed to one; None where they don't collapse to one
    stride."""
    strides = x.stride()
    step, inner = 1, None
    for size, stride in zip(x.shape[:2:-1], strides[:2:-1], strict=True):
        if size == 1:
            continue
        if inner is None:
            inner = step = stride
        if stride != step:
            return None
        step = stride * size
    return Strides(*strides[:3], 1 if inner is None else inner)


def in_layout_of(z: Tensor, x: Tensor) -> Tensor:
    """z [T, N, C, *S] as it is where its spatial dimensions collapse and it runs along the same innermost dimension as
    x, else a dense copy."""
    last = is_channels_last(x)
    strides = collapse(z)
    if strides is not None and (strides.c == 1 or z.shape[2] == 1 if last else strides.s == 1):
        return z
    dense = torch.empty_strided(z.shape, dense_strides(z.shape, last), dtype=z.dtype, device=z.device)
    return dense.copy_(z)
