"""Active channels of weights and activations, as index lists: the words of a channel-sparse convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Geometry(NamedTuple):
    """Stride, padding and dilation per spatial dimension, and the number of groups (1, or depthwise)."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int


class Channels(NamedTuple):
    """Sorted int64 indices of the active input and output channels; None stands for all of them."""

    input: Tensor | None
    output: Tensor | None


def storage_order(x: Tensor) -> tuple[int, ...]:
    """Permutation that makes x [M, C, H, W] contiguous in memory for its layout.

    Maps of one position or one channel are both layouts; which one is meant, their strides tell, as they tell torch,
    whose convolutions take another way for each.
    """
    if not x.is_contiguous(memory_format=torch.channels_last):
        return (0, 1, 2, 3)
    either = x.is_contiguous()
    return (0, 1, 2, 3) if either and (x.stride(1) != 1 or x.stride(3) != x.shape[1]) else (0, 2, 3, 1)


class Bits(NamedTuple):
    """An input [M, C, H, W] of zeros and ones as bits (uint8), in the order of its memory."""

    packed: Tensor
    shape: Sequence[int]
    channels_last: bool

    def unflattened(self, flat: Tensor) -> Tensor:
        """The input from its elements in the order of its memory."""
        m, c, h, w = self.shape
        return flat.view(m, h, w, c).permute(0, 3, 1, 2) if self.channels_last else flat.view(m, c, h, w)


def numel(shape: Sequence[int]) -> int:
    """Product of sizes, symbolic ones too."""
    n = 1
    for size in shape:
        n = n * size
    return n


def memory_format(weight: Tensor) -> torch.memory_format:
    """Layout of a weight; a block gathered from it and a gradient scattered to it have the same."""
    last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def empty_weight(like: Tensor) -> Tensor:
    """An uninitialised weight in the layout of another, with its very strides where those are dense: DDP compares them,
    and a size of 1 leaves a choice."""
    layout = memory_format(like)
    return torch.empty_like(like, **({} if like.is_contiguous(memory_format=layout) else {"memory_format": layout}))


def gather(weight: Tensor, channels: Channels) -> Tensor:
    """Active sub-block of a weight [C_out, C_in, kh, kw]; the weight itself where all channels are active."""
    if channels.input is None and channels.output is None:
        return weight
    block = weight if channels.output is None else weight.index_select(0, channels.output)
    block = block if channels.input is None else block.index_select(1, channels.input)
    return block.contiguous(memory_format=memory_format(weight))


def scatter(block: Tensor, like: Tensor, channels: Channels) -> Tensor:
    """Inverse of :func:`gather`: shaped like the full weight, zero outside the active sub-block."""
    if channels.input is None and channels.output is None:
        return block
    if channels.input is not None:
        rows = block.new_zeros(block.shape[0], *like.shape[1:])
        block = rows.index_copy_(1, channels.input, block.contiguous())
    full = empty_weight(like).zero_()
    return full.copy_(block) if channels.output is None else full.index_copy_(0, channels.output, block)


def put(block: Tensor, full: Tensor, channels: Channels) -> None:
    """Write what :func:`gather` reads, in place; the rest of the weight stays."""
    if channels.input is None:
        full.copy_(block) if channels.output is None else full.index_copy_(0, channels.output, block)
        return
    rows = full if channels.output is None else full.index_select(0, channels.output)
    rows.index_copy_(1, channels.input, block)
    if channels.output is not None:
        full.index_copy_(0, channels.output, rows)


def narrow(z: Tensor, index: Tensor | None) -> Tensor:
    """Active channels of z [M, C, ...], in its layout; z itself where it is at the active width."""
    if index is None or z.shape[1] == index.numel():
        return z
    return z.movedim(1, -1).index_select(-1, index).movedim(-1, 1) if z.stride(1) == 1 else z.index_select(1, index)


def widen(z: Tensor, index: Tensor | None, width: int) -> Tensor:
    """Inverse of :func:`narrow`: ``width`` channels, the dormant ones zero; z itself where it has as many."""
    if index is None or z.shape[1] == width:
        return z
    shape = z.shape[0], width, *z.shape[2:]
    full = torch.empty(shape, dtype=z.dtype, device=z.device, memory_format=memory_format(z))
    return full.zero_().index_copy_(1, index, z)


def output_size(x: Sequence[int], weight: Sequence[int], geometry: Geometry) -> list[int]:
    """Height and width of a convolution's output, from the shapes of its input and its weight."""
    sizes = zip(x[2:], weight[2:], *geometry[:3], strict=True)
    return [(size + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for size, k, stride, padding, dilation in sizes]


def bias_gradient(grad: Tensor, channels: Channels, width: int) -> Tensor:
    """Sums of dL/dy per channel, [width], exactly zero for dormant channels."""
    return widen(narrow(grad.sum((0, 2, 3))[None], channels.output), channels.output, width)[0]
