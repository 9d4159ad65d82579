"""How activations are cut into tiles, one kind of tile for all layouts, and how per-channel sums leave the programs.

A tile is ROWS x COLUMNS elements, with all their time steps. Columns run along the innermost dimension:

* interleaved: channels_last and [T, N, C] (a column is a channel, a row a position (n, s)), and contiguous maps of few
  positions (a column is one of the C * S elements of a sample, ``fold`` = S of them per channel; a row is a sample).
* planes: contiguous maps; one program stays in one channel, a row is a sample, a column a position.

Tiles one above the other are a *stripe* (the columns of a tile; or a channel), which ``splits`` programs share, as in
split-K: each owns ``tiles`` consecutive tiles of it and writes each of its sums once, as float64, to ``partials``
[quantity, split, column or channel]; :func:`sum_partials` adds them up. All of this depends on shapes alone, so two
runs agree bit for bit.
"""

import functools
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import layout
from ..layout import collapse, empty_activation, is_channels_last, spatial_size

WARPS = 4
_TILE_BYTES = WARPS * 32 * 16  # of the input's dtype and one step: each thread moves 16 bytes per access
_FOLD_BELOW = 32  # positions: shorter rows would waste most of a memory transaction
_MAX_PROGRAMS = 8192  # several waves on any GPU; more would only lengthen the sum over partials
_FEW_STEPS = 4  # whose x, gradient and h fit into registers with an address per element
_MAX_STEPS = 8  # whose h fits into registers
_CHUNK = 6  # steps at once of a longer sequence: a quarter of the registers goes to what going over chunks takes
_MAX_TERMS = 64  # steps x tiles that a float32 accumulator takes in before it is widened


class TileStrides(NamedTuple):
    """Strides of a tensor in units of ``align`` elements: per step, per row (split into two where rows are not evenly
    spaced) and per stripe."""

    t: int
    outer: int
    inner: int
    stripe: int


class Tiling(NamedTuple):
    """The tiles of one kernel launch.

    Attributes:
        arguments: kernel arguments that describe them.
        strides: of each tensor given to :func:`tile`; None where it was None.
        programs: size of the launch grid.
        tile_size: elements of a tile.
        narrow: whether an access moves less than 16 bytes.
        width: columns or channels, one column of partials each.
    """

    arguments: dict[str, int]
    strides: tuple[TileStrides | None, ...]
    programs: int
    tile_size: int
    narrow: bool
    width: int

    def argument(self, name: str, at: int, z: Tensor | None) -> dict:
        """Kernel arguments of the tensor that was given to :func:`tile` at this place."""
        strides = self.strides[at] or TileStrides(0, 0, 0, 0)
        return {name: z, **{f"{name}_{field}": v for field, v in zip(TileStrides._fields, strides, strict=True)}}

    def partials(self, quantities: int, device: torch.device) -> Tensor:
        """Room for the sums of all programs."""
        return torch.empty((quantities, self.arguments["splits"], self.width), dtype=torch.float64, device=device)

    def sum_arguments(self, partials: Tensor) -> dict:
        """Kernel arguments of :func:`sum_partials`."""
        return {"partials": partials, "splits": self.arguments["splits"], "fold": self.arguments["fold"]}


def tile(x: Tensor, time_steps: int, *others: Tensor | None) -> tuple[Tiling, list[Tensor | None]]:
    """Tiles of x [T or 1, N, C, *S], whose layout decides, and of tensors [time_steps, N, C, *S] processed with it.

    Returns:
        The tiling, for x and the others in this order; and the others, as they are where tiles can address them, else
        as dense copies.
    """
    positions = spatial_size(x)
    strides = collapse(x)
    channels_innermost = is_channels_last(x) or (positions == 1 and (x.shape[2] == 1 or strides.c == 1))
    folded = not channels_innermost and positions < _FOLD_BELOW and strides.c == positions

    def addressable(z: Tensor) -> bool:
        z_strides = collapse(z)
        if z_strides is None:
            return False
        if channels_innermost:
            return x.shape[2] == 1 or z_strides.c == 1
        return (positions == 1 or z_strides.s == 1) and (not folded or z_strides.c == positions)

    tensors = [z if z is None or addressable(z) else empty_activation(x, time_steps, z.dtype).copy_(z) for z in others]
    return _tiling(
        (x.shape[1], x.shape[2], positions),
        time_steps,
        x.element_size(),
        channels_innermost,
        folded,
        (strides, *(z if z is None else collapse(z) for z in tensors)),
        all(z is None or z.data_ptr() % 16 == 0 for z in (x, *tensors)),
    ), tensors


@functools.lru_cache(maxsize=4096)
def _tiling(
    shape: tuple[int, int, int],
    time_steps: int,
    element_size: int,
    channels_innermost: bool,
    folded: bool,
    collapsed: tuple[layout.Strides | None, ...],
    aligned: bool,
) -> Tiling:
    n, c, s = shape
    interleaved = channels_innermost or folded
    inner = s if channels_innermost else 1
    rows, columns = n * inner, c if channels_innermost else c * s if folded else s
    uneven = n > 1 and inner > 1 and any(z.n != s * z.s for z in collapsed if z)
    per_position = inner > 1 and not uneven
    strides = [
        z and TileStrides(z.t, z.s if per_position else z.n, z.s if uneven else 0, 0 if interleaved else z.c)
        for z in collapsed
    ]
    align = math.gcd(16 // element_size, columns, *(stride for z in strides if z for stride in z)) if aligned else 1

    tile_size = _TILE_BYTES // element_size
    narrow = align * element_size < 16
    if narrow and time_steps > _FEW_STEPS:
        # An address each: two elements, or one access, of each thread.
        tile_size = 2 * WARPS * 32 * max(2, align)
    # The narrower a tile, the more rows a short one wastes; 64 columns still fill whole memory transactions.
    tile_columns = min(max(triton.next_power_of_2(columns), 16), 64)
    if not interleaved and s >= tile_size:
        tile_columns = tile_size
    tile_rows = tile_size // tile_columns
    row_tiles, column_tiles = triton.cdiv(rows, tile_rows), triton.cdiv(columns, tile_columns)
    stripes, in_stripe = (column_tiles, row_tiles) if interleaved else (c, row_tiles * column_tiles)
    tiles = max(1, min(triton.cdiv(stripes * in_stripe, _MAX_PROGRAMS), _MAX_TERMS // time_steps))
    splits = triton.cdiv(in_stripe, tiles)
    arguments = {
        "rows": rows,
        "columns": columns // align,
        "inner": inner,
        "fold": s if folded else 1,
        "stripes": stripes,
        "splits": splits,
        "tiles": tiles,
        "INTERLEAVED": interleaved,
        "UNEVEN": uneven,
        "ALIGN": align,
        "ROWS": tile_rows,
        "COLUMNS": tile_columns,
    }
    in_units = tuple(z and TileStrides(*(stride // align for stride in z)) for z in strides)
    return Tiling(arguments, in_units, stripes * splits, tile_size, narrow, columns if interleaved else c)


GEOMETRY = ["rows", "columns", "inner", "fold", "stripes", "splits", "tiles", "time_steps"]
"""Run-time integers of every kernel over tiles: never specialised, so that a new size compiles nothing."""


def strides_of(name: str) -> list[str]:
    """The strides that go with a kernel's tensor argument."""
    return [f"{name}_{field}" for field in TileStrides._fields]


class Steps(NamedTuple):
    """How a kernel goes over time: all steps at once, or, where the registers don't hold them, chunk by chunk; then T
    is a run-time argument, and sequences of all lengths share one compiled variant."""

    time_steps: int
    size: int

    @property
    def chunks(self) -> int:
        """How many there are."""
        return triton.cdiv(self.time_steps, self.size)

    def arguments(self, crowded: bool) -> dict:
        """Kernel arguments. In a crowded kernel, one of narrow accesses or one that keeps the potentials of elements
        that come eight to a thread, more than a few steps are spread over twice as many threads: 8 bytes per access
        instead of registers spilled."""
        warps = 2 * WARPS if crowded and self.size > _FEW_STEPS else WARPS
        return {
            "time_steps": self.time_steps,
            "STEPS": self.size,
            "CHUNKED": self.chunks > 1,
            "num_warps": warps,
        }


def steps_of(time_steps: int) -> Steps:
    """All steps of a short sequence, chunks of a long one."""
    return Steps(time_steps, time_steps if time_steps <= _MAX_STEPS else _CHUNK)


def launch(kernel, programs: int, on: Tensor, *, num_warps: int = WARPS, **arguments) -> None:
    """Start a kernel on the device of a tensor. No multiply-add is fused: spikes equal those of the eager equations."""
    with torch.cuda.device_of(on):
        kernel[(programs,)](**arguments, num_warps=num_warps, enable_fp_fusion=False)


@triton.jit
def tile_indices(tile, stripe, rows, columns, INTERLEAVED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Row indices [ROWS], column indices [COLUMNS] and validity [ROWS, COLUMNS] of a tile of a stripe."""
    if INTERLEAVED:
        row_tile = tile
        column_tile = stripe
    else:
        column_tiles = tl.cdiv(columns, COLUMNS)
        row_tile = tile // column_tiles
        column_tile = tile % column_tiles
    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = column_tile * COLUMNS + tl.arange(0, COLUMNS)
    return row, column, (row < rows)[:, None] & (column < columns)[None, :]


@triton.jit
def strided(row, column, stripe, outer, inner_stride, stripe_stride, inner, UNEVEN: tl.constexpr, ALIGN: tl.constexpr):
    """Offsets [ROWS, COLUMNS] into a tensor with :class:`TileStrides`."""
    outer *= ALIGN
    at = (row // inner) * outer + (row % inner) * (inner_stride * ALIGN) if UNEVEN else row * outer
    return (at + stripe * (stripe_stride * ALIGN))[:, None] + column[None, :]


@triton.jit
def dense(row, column, stripe, stripes, columns, INTERLEAVED: tl.constexpr):
    """Offsets [ROWS, COLUMNS] into a dense tensor in the layout of x."""
    if INTERLEAVED:
        return (row * columns)[:, None] + column[None, :]
    else:
        return ((row * stripes + stripe) * columns)[:, None] + column[None, :]


@triton.jit
def exists(t, time_steps, CHUNKED: tl.constexpr):
    """Whether there is a step t: the last chunk may reach beyond the end."""
    if CHUNKED:
        return t < time_steps
    else:
        return True


@triton.jit
def live_at(valid, t, time_steps, CHUNKED: tl.constexpr):
    """Validity at step t. (Selected: the interpreter of Triton 3.9 makes no mask of a tensor & a number.)"""
    if CHUNKED:
        return tl.where(t < time_steps, valid, False)
    else:
        return valid


@triton.jit
def load_steps(z, first, step, valid, time_steps, STEPS: tl.constexpr, CHUNKED: tl.constexpr, REPEAT: tl.constexpr):
    """A chunk's steps, all issued before any is used; with REPEAT one step stands for all."""
    loaded = ()
    for t in tl.static_range(STEPS):
        if REPEAT and t > 0:
            loaded += (loaded[0],)
        else:
            loaded += (tl.load(z + (first + t) * step, mask=live_at(valid, first + t, time_steps, CHUNKED), other=0.0),)
    return loaded


@triton.jit
def channel_of(column, fold):
    """Channel of a column. (Divided in 32 bits: columns of one sample are few, and 64 take a subroutine.)"""
    return (column.to(tl.int32) // fold.to(tl.int32)).to(tl.int64)


@triton.jit
def of_channel(vector, stripe, columns, fold, INTERLEAVED: tl.constexpr, COLUMNS: tl.constexpr):
    """A stripe's entries of a per-channel vector [C]: [1, COLUMNS], or a number. (Not for None: up to Triton 3.6 no
    function returns it.)"""
    if INTERLEAVED:
        column = stripe * COLUMNS + tl.arange(0, COLUMNS)
        return tl.load(vector + channel_of(column, fold), mask=column < columns, other=0)[None, :]
    else:
        return tl.load(vector + stripe)


@triton.jit
def put_partial(
    partials, quantity, sums, split, splits, stripe, stripes, columns, INTERLEAVED: tl.constexpr, COLUMNS: tl.constexpr
):
    """Add up a program's accumulator [ROWS, COLUMNS] per column (or channel) and write it."""
    sums = sums.to(tl.float64)
    if INTERLEAVED:
        column = stripe * COLUMNS + tl.arange(0, COLUMNS)
        tl.store(partials + (quantity * splits + split) * columns + column, tl.sum(sums, 0), mask=column < columns)
    else:
        tl.store(partials + (quantity * splits + split) * stripes + stripe, tl.sum(sums))


PROGRAM_CHANNELS = tl.constexpr(4)  # a memory sector of float64 per row of partials
_SUMMED_ROWS = tl.constexpr(512)
SUM_WARPS = 8


@triton.jit
def program_channels(channels):
    """Channel indices of this program of a kernel over [C], and which of them exist."""
    channel = tl.program_id(0).to(tl.int64) * PROGRAM_CHANNELS + tl.arange(0, PROGRAM_CHANNELS)
    return channel, channel < channels


@triton.jit
def sum_partials(partials, quantity, channel, exists, channels, splits, fold):
    """Sum of one quantity over all programs, float64 [PROGRAM_CHANNELS], in a fixed order."""
    rows = (splits * fold).to(tl.int32)
    fold = fold.to(tl.int32)
    sums = tl.zeros([_SUMMED_ROWS, PROGRAM_CHANNELS], tl.float64)
    for first in range(0, rows, _SUMMED_ROWS):
        row = first + tl.arange(0, _SUMMED_ROWS)
        at = ((quantity * splits + row // fold) * (channels * fold) + row % fold)[:, None] + (channel * fold)[None, :]
        sums += tl.load(partials + at, mask=(row < rows)[:, None] & exists[None, :], other=0.0)
    return tl.sum(sums, 0)


def launch_per_channel(kernel, channels: int, on: Tensor, **arguments) -> None:
    """Start a kernel over [C] whose programs take their :func:`program_channels`."""
    programs = triton.cdiv(channels, PROGRAM_CHANNELS.value)
    launch(kernel, programs, on, num_warps=SUM_WARPS, channels=channels, **arguments)


@triton.jit(
    do_not_specialize=["splits", "fold", "channels"],
    do_not_specialize_on_alignment=["first", "second", "third"],
)
def write_sums_kernel(partials, first, second, third, splits: tl.int64, fold: tl.int64, channels: tl.int64):
    channel, exists = program_channels(channels)
    outputs = (first, second, third)
    for q in tl.static_range(3):
        if outputs[q] is not None:
            value = sum_partials(partials, q, channel, exists, channels, splits, fold)
            tl.store(outputs[q] + channel, value.to(outputs[q].dtype.element_ty), mask=exists)


def write_sums(tiling: Tiling, partials: Tensor, *outputs: Tensor | None) -> None:
    """Write the sum of each quantity (at most three) to its output [C], in the output's dtype; None skips it."""
    first, second, third = (*outputs, None, None, None)[:3]
    given = next((z for z in outputs if z is not None), None)
    if given is not None:
        launch_per_channel(
            write_sums_kernel,
            given.numel(),
            partials,
            first=first,
            second=second,
            third=third,
            **tiling.sum_arguments(partials),
        )
