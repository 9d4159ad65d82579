"""Active channels of weights and activations, as index lists: the words of a channel-sparse convolution."""

from __future__ import annotations

import itertools
import weakref
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


class _Facts(NamedTuple):
    """A list of channels, and what is asked of it."""

    listed: tuple[int, ...]
    least: int
    most: int
    increasing: bool
    unique: bool


# By id, with the version that was looked at. A list on a device is read once; reading it means to wait for the device.
_known: dict[int, tuple[weakref.ref[Tensor], int, _Facts]] = {}


def _version(index: Tensor) -> int | None:
    return None if index.is_inference() else index._version  # a tensor of inference mode has none


def _remember(index: Tensor, facts: _Facts) -> None:
    key = id(index)
    _known[key] = weakref.ref(index, lambda _: _known.pop(key, None)), _version(index), facts


def _facts(index: Tensor) -> _Facts | None:
    """Of a list that has at least one entry; None while a CUDA graph is recorded, when it can't be read. A list that
    is known, and has not been written to since, is not read again (one of inference mode on a CPU is: nothing tells
    whether it was written to)."""
    version = _version(index)
    known = _known.get(id(index))
    if known is not None and known[0]() is index and known[1] == version and (index.is_cuda or version is not None):
        return known[2]
    if index.is_cuda and torch.cuda.is_current_stream_capturing():
        return None
    listed = _read(index)
    increasing = all(a < b for a, b in itertools.pairwise(listed))
    facts = _Facts(listed, min(listed), max(listed), increasing, increasing or len(set(listed)) == len(listed))
    _remember(index, facts)
    return facts


def _read(index: Tensor) -> tuple[int, ...]:
    try:
        return tuple(index.tolist())
    except RuntimeError:  # torch 2.9 reads single values alone within a transform of torch.func
        return tuple(entry.item() for entry in index)


def check_values(name: str, index: Tensor, size: int, sorted_: bool = True) -> None:
    """ValueError unless a 1-D int64 list names channels in [0, size), each once and, unless that does not matter, in
    order. Read once per tensor and version: on a CUDA device the first call with a list waits for it, no other does.
    """
    if index.numel() == 0:
        raise ValueError(f"{name}: expected at least one channel, got none")
    facts = _facts(index)
    if facts is None or (facts.least >= 0 and facts.most < size and (facts.increasing if sorted_ else facts.unique)):
        return
    kind = "sorted unique" if sorted_ else "unique"
    raise ValueError(f"{name}: expected {kind} indices in [0, {size}), got {list(facts.listed)}")


def same(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two lists that :func:`check_values` has seen name the same channels."""
    if a is None or b is None or a is b:
        return a is b
    first, second = _facts(a), _facts(b)
    return first is None or second is None or first.listed == second.listed


def on_device(index: Tensor, device: torch.device) -> Tensor:
    """A list of channels on another device, known there without being read."""
    moved = index.to(device)
    if not torch.compiler.is_compiling() and moved is not index and index.numel():
        facts = _facts(index)
        if facts is not None:
            _remember(moved, facts)
    return moved


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


def active_widths(weight: Sequence[int], groups: int, channels: Channels) -> tuple[int, int]:
    """Active input and output channels of a convolution by a weight of that shape."""
    inputs = weight[1] * groups if channels.input is None else channels.input.numel()
    return inputs, weight[0] if channels.output is None else channels.output.numel()


def block_shape(weight: Sequence[int], channels: Channels) -> tuple[int, ...]:
    """Shape of the active sub-block of a weight of that shape."""
    lists = zip(weight[:2], channels[::-1], strict=True)
    return *(size if index is None else index.numel() for size, index in lists), *weight[2:]


def empty_block(weight: Tensor, channels: Channels, dtype: torch.dtype) -> Tensor:
    """An uninitialised active sub-block of a weight, in its layout."""
    shape, layout = block_shape(weight.shape, channels), memory_format(weight)
    return torch.empty(shape, dtype=dtype, device=weight.device, memory_format=layout)


def gather(weight: Tensor, bias: Tensor | None, channels: Channels, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Active sub-blocks of a weight [C_out, C_in, ...] and a bias [C_out], in a dtype; themselves where they are
    that."""
    block = weight if channels.output is None else weight.index_select(0, channels.output)
    block = block if channels.input is None else block.index_select(1, channels.input)
    block = weight.to(dtype) if block is weight else block.to(dtype, memory_format=memory_format(weight))
    return block, None if bias is None else gather_bias(bias, channels, dtype)


def gather_bias(bias: Tensor, channels: Channels, dtype: torch.dtype) -> Tensor:
    """The bias alone, see :func:`gather`."""
    return (bias if channels.output is None else bias.index_select(0, channels.output)).to(dtype)


def scatter(
    block: Tensor | None, bias: Tensor | None, like: Tensor, channels: Channels
) -> tuple[Tensor | None, Tensor | None]:
    """Inverse of :func:`gather`: shaped like the full weight and its bias, in the weight's dtype, zero outside the
    active sub-block; None for None."""
    if block is not None:
        block = block.to(like.dtype)
        if channels.input is not None or channels.output is not None:
            full = empty_weight(like).zero_()
            put(block, full, channels)
            block = full
    return block, None if bias is None else scatter_bias(bias, like, channels)


def scatter_bias(bias: Tensor, like: Tensor, channels: Channels) -> Tensor:
    """The bias alone, see :func:`scatter`."""
    return widen(bias[None].to(like.dtype), channels.output, like.shape[0])[0]


def put(block: Tensor, full: Tensor, channels: Channels) -> None:
    """Write what :func:`gather` reads, in place; the rest of the weight stays."""
    if channels.input is None:
        full.copy_(block) if channels.output is None else full.index_copy_(0, channels.output, block)
    elif channels.output is None:
        full.index_copy_(1, channels.input, block)
    else:
        full.index_put_((channels.output[:, None], channels.input), block)


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


def is_depthwise(weight: Sequence[int], groups: int) -> bool:
    """Whether a convolution by a weight of this shape has a group per channel; ValueError where its output channels are
    not divided evenly among the groups."""
    if weight[0] % groups:
        raise ValueError(f"groups: expected a divisor of the {weight[0]} output channels, got {groups}")
    return groups > 1 and weight[1] == 1 and weight[0] == groups


def check_grouped_lists(channels: Channels, depthwise: bool) -> None:
    """ValueError unless a convolution of several groups computes all channels or, depthwise, the same ones on both
    sides. A compiler can't tell, nor can tensors without values."""
    for name, index in zip(("in_channels", "out_channels"), channels, strict=True):
        if index is not None and not depthwise:
            raise ValueError(
                f"{name}: expected None for a grouped, not depthwise convolution, got {index.numel()} indices"
            )
    listed = channels.input is not None and channels.output is not None
    if listed and (torch.compiler.is_compiling() or channels.input.is_meta):
        return
    if not same(*channels):
        raise ValueError("in_channels, out_channels: expected the same indices for a depthwise convolution")


def output_size(x: Sequence[int], weight: Sequence[int], geometry: Geometry) -> list[int]:
    """Height and width of a convolution's output, from the shapes of its input and its weight."""
    sizes = zip(x[2:], weight[2:], *geometry[:3], strict=True)
    return [(size + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for size, k, stride, padding, dilation in sizes]


def no_room(x: Sequence[int], weight: Sequence[int], geometry: Geometry) -> ValueError:
    """The error for an input whose output would be empty, see :func:`output_size`."""
    return ValueError(f"x: expected room for a kernel of {tuple(weight[2:])}, {geometry}, got shape {tuple(x)}")


def at_width(vector: Tensor | None, channels: Tensor | None, x: Tensor) -> Tensor | None:
    """A per-channel vector as wide as x: itself, or read through the list."""
    if vector is None or channels is None or vector.numel() == x.shape[2]:
        return vector
    return vector.index_select(0, channels)


def at_length(gradient: Tensor | None, like: Tensor | None, channels: Tensor | None) -> Tensor | None:
    """Inverse of :func:`at_width`: as long as the vector, zero for channels that the list has not."""
    if gradient is None or gradient.numel() == like.numel():
        return gradient
    return torch.zeros_like(like).index_copy_(0, channels, gradient)
