"""Active blocks of weights in Triton (twin of ``gather`` and ``scatter`` in :mod:`sca_kernels.channels`).

One launch reads the active block of a weight, and of its bias, through the index lists and casts it; one launch writes
full-size gradients in the weight's dtype, each element once: what a list does not hold is zero. Weights are read along
three axes: outputs, inputs, and the taps of the kernel, in the order of the memory that is written.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..channels import Channels, empty_block, empty_weight, memory_format
from ..layout import collapse

_ACCESS_BYTES = 16
_ROWS, _COLUMNS = 8, 128


def unspecialised(kernel):
    """triton.jit that compiles nothing for another size: no integer is specialised, nor the alignment of a list."""
    sizes = [name for name, kind in kernel.__annotations__.items() if kind is tl.int64]
    lists = [name for name in kernel.__code__.co_varnames[: kernel.__code__.co_argcount] if name.endswith("_index")]
    return triton.jit(kernel, do_not_specialize=sizes, do_not_specialize_on_alignment=lists)


@triton.jit
def _listed(index, at, exists):
    """Channels that entries stand for: themselves where there is no list."""
    if index is None:
        return at
    else:
        return tl.load(index + at, mask=exists, other=0)


@triton.jit
def _found(index, count, channel, exists):
    """Where a sorted list holds channels, and whether it does; everywhere at its own place where there is no list."""
    if index is None:
        return channel, exists
    else:
        low = tl.zeros_like(channel)
        high = low + count
        left = count
        while left > 0:  # a bisection: low counts the entries below the channel
            middle = (low + high) // 2
            below = (low < high) & (tl.load(index + middle, mask=low < high, other=0) < channel)
            high = tl.where(below, high, middle)
            low = tl.where(below, middle + 1, low)
            left //= 2
        there = exists & (low < count)
        return low, there & (tl.load(index + low, mask=there, other=0) == channel)


@unspecialised
def gather_kernel(
    source,
    target,
    bias,
    bias_target,
    outer_index,
    middle_index,
    inner_index,
    rows: tl.int64,
    columns: tl.int64,
    inners: tl.int64,
    outer_stride: tl.int64,
    middle_stride: tl.int64,
    inner_stride: tl.int64,
    ALIGN: tl.constexpr,
    WHOLE_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """target[outer, middle, inner], dense, from a strided source; columns: middle and inner, in units of ALIGN.
    WHOLE_ROWS: the source's rows are the target's."""
    columns *= ALIGN
    program = tl.program_id(0).to(tl.int64)
    column_tiles = tl.cdiv(columns, COLUMNS)
    row = (program // column_tiles) * ROWS + tl.arange(0, ROWS)
    column = (program % column_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    row_exists = row < rows
    column_exists = column < columns
    outer = _listed(outer_index, row, row_exists)
    if WHOLE_ROWS:
        from_row = outer * columns
        from_column = column
    else:
        middle = _listed(middle_index, column // inners, column_exists)
        inner = _listed(inner_index, column % inners, column_exists)
        from_row = outer * outer_stride
        from_column = middle * middle_stride + inner * inner_stride
    exists = row_exists[:, None] & column_exists[None, :]
    value = tl.load(source + from_row[:, None] + from_column[None, :], mask=exists, other=0.0)
    tl.store(target + (row * columns)[:, None] + column[None, :], value.to(target.dtype.element_ty), mask=exists)
    if bias is not None:
        first = tl.where(program % column_tiles == 0, row_exists, False)  # 3.9's interpreter makes no mask by &
        value = tl.load(bias + outer, mask=first, other=0.0)
        tl.store(bias_target + row, value.to(bias_target.dtype.element_ty), mask=first)


@unspecialised
def scatter_kernel(
    source,
    target,
    bias,
    bias_target,
    outer_index,
    middle_index,
    inner_index,
    outer_count: tl.int64,
    column_count: tl.int64,
    rows: tl.int64,
    columns: tl.int64,
    inners: tl.int64,
    outer_stride: tl.int64,
    middle_stride: tl.int64,
    inner_stride: tl.int64,
    ALIGN: tl.constexpr,
    WHOLE_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """target[outer, middle, inner], dense, from the places of a strided source that the sorted lists give, zero where
    they give none; ``column_count``: entries of the list along middle or inner."""
    columns *= ALIGN
    program = tl.program_id(0).to(tl.int64)
    column_tiles = tl.cdiv(columns, COLUMNS)
    row = (program // column_tiles) * ROWS + tl.arange(0, ROWS)
    column = (program % column_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    row_exists = row < rows
    column_exists = column < columns
    outer, row_found = _found(outer_index, outer_count, row, row_exists)
    if WHOLE_ROWS:
        from_row = outer * columns
        from_column = column
        column_found = column_exists
    else:
        middle, middle_found = _found(middle_index, column_count, column // inners, column_exists)
        inner, inner_found = _found(inner_index, column_count, column % inners, column_exists)
        from_row = outer * outer_stride
        from_column = middle * middle_stride + inner * inner_stride
        column_found = middle_found & inner_found
    found = row_found[:, None] & column_found[None, :]
    value = tl.load(source + from_row[:, None] + from_column[None, :], mask=found, other=0.0)
    exists = row_exists[:, None] & column_exists[None, :]
    tl.store(target + (row * columns)[:, None] + column[None, :], value.to(target.dtype.element_ty), mask=exists)
    if bias is not None:
        first = tl.where(program % column_tiles == 0, row_exists, False)
        value = tl.load(bias + outer, mask=row_found & first, other=0.0)
        tl.store(bias_target + row, value.to(bias_target.dtype.element_ty), mask=first)


class Axis(NamedTuple):
    """One of a weight's: the entries that are listed (None: all), how many a dense tensor has along it, and the stride
    of a strided one."""

    index: Tensor | None
    size: int
    stride: int


def axes(strided: Tensor, shape: Sequence[int], channels: Channels) -> tuple[Axis, Axis, Axis]:
    """Outputs, inputs and taps of a strided weight (:func:`collapsible`), or block of one, beside a dense tensor of
    that shape, the other of the two."""
    strides = collapse(strided[None])
    outputs, inputs = Axis(channels.output, shape[0], strides.n), Axis(channels.input, shape[1], strides.c)
    return outputs, inputs, Axis(None, math.prod(shape[2:]), strides.s)


def collapsible(z: Tensor) -> Tensor:
    """A weight as it is where its taps have one stride, else a copy."""
    return z.contiguous() if collapse(z[None]) is None else z


def start(
    kernel, source: Tensor, target: Tensor, along: tuple[Axis, Axis, Axis], bias=None, bias_target=None, **counts: int
) -> None:
    """Fill a dense target, outermost axis first, and the bias beside it, from a strided source."""
    outer, middle, inner = along
    columns = middle.size * inner.size
    align = _ACCESS_BYTES // min(source.element_size(), target.element_size())
    while columns % align:
        align //= 2
    unlisted = middle.index is None and inner.index is None
    whole = inner.stride == 1 and middle.stride == inner.size and outer.stride == columns
    with torch.cuda.device_of(target):
        kernel[(triton.cdiv(outer.size, _ROWS) * triton.cdiv(columns, _COLUMNS),)](
            source=source,
            target=target,
            bias=bias,
            bias_target=bias_target,
            outer_index=outer.index,
            middle_index=middle.index,
            inner_index=inner.index,
            **counts,
            rows=outer.size,
            columns=columns // align,
            inners=inner.size,
            outer_stride=outer.stride,
            middle_stride=middle.stride,
            inner_stride=inner.stride,
            ALIGN=align,
            WHOLE_ROWS=unlisted and whole,
            ROWS=_ROWS,
            COLUMNS=_COLUMNS,
            enable_fp_fusion=False,
        )


def _in_memory(dense: Tensor, outputs: Axis, inputs: Axis, taps: Axis) -> tuple[Axis, Axis, Axis]:
    """The axes in the order of a dense tensor's memory."""
    last = memory_format(dense) == torch.channels_last
    return (outputs, taps, inputs) if last else (outputs, inputs, taps)


def gather(weight: Tensor, bias: Tensor | None, channels: Channels, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """As :meth:`sca_kernels.backends.base.Backend.gather_weight`; lists in any order."""
    weight, block = collapsible(weight), empty_block(weight, channels, dtype)
    bias_block = None if bias is None else bias.new_empty(block.shape[0], dtype=dtype)
    along = _in_memory(block, *axes(weight, block.shape, channels))
    start(gather_kernel, weight, block, along, bias, bias_block)
    return block, bias_block


def scatter(block: Tensor, bias: Tensor | None, like: Tensor, channels: Channels) -> tuple[Tensor, Tensor | None]:
    """As :meth:`sca_kernels.backends.base.Backend.scatter_weight`; lists sorted."""
    block, full = collapsible(block), empty_weight(like)
    full_bias = None if bias is None else bias.new_empty(full.shape[0], dtype=like.dtype)
    along = _in_memory(full, *axes(block, full.shape, channels))
    counts = {"outer_count": block.shape[0], "column_count": block.shape[1]}
    start(scatter_kernel, block, full, along, bias, full_bias, **counts)
    return full, full_bias
