"""What kernels over activations share: the tiles of :mod:`sca_kernels.gpu.plan`.

Numbers of tiles, and rows and columns within one, are 32 bits wide, where a division is a few instructions; where a
tile begins, and every offset, is 64 bits wide.
"""

import triton
import triton.language as tl

_ACTIVATIONS = {"x", "grad_spikes", "spikes", "grad_x", "v_init", "v_last", "grad_v", "grad_v_init", "checkpoints"}
_ACTIVATIONS |= {"potentials", "grad_h"}


def over_tiles(kernel):
    """triton.jit that compiles nothing for another size: no integer is specialised, nor the alignment of a vector,
    which may be a row of a larger buffer."""
    kinds = kernel.__annotations__
    arguments = kernel.__code__.co_varnames[: kernel.__code__.co_argcount]
    sizes = [name for name, kind in kinds.items() if kind is tl.int64]
    vectors = [name for name in arguments if name not in kinds and name not in _ACTIVATIONS]
    return triton.jit(kernel, do_not_specialize=sizes, do_not_specialize_on_alignment=vectors)


@triton.jit
def own_stripe(stripes, tiles):
    """Stripe and split of this program, and its first tile."""
    program = tl.program_id(0)
    stripe = program % stripes.to(tl.int32)
    split = program // stripes.to(tl.int32)
    return stripe.to(tl.int64), split.to(tl.int64), split.to(tl.int64) * tiles


@triton.jit
def tile_at(tile, stripe, rows, columns, INTERLEAVED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """First row and first column of a tile of a stripe, and which of its elements exist, [ROWS, COLUMNS]."""
    if INTERLEAVED:
        row_tile = tile.to(tl.int32)
        column_tile = stripe.to(tl.int32)
    else:
        column_tiles = tl.cdiv(columns.to(tl.int32), COLUMNS)
        row_tile = tile.to(tl.int32) // column_tiles
        column_tile = tile.to(tl.int32) % column_tiles
    row = row_tile.to(tl.int64) * ROWS
    column = column_tile.to(tl.int64) * COLUMNS
    rows_left = tl.minimum(rows - row, ROWS).to(tl.int32)
    columns_left = (columns - column).to(tl.int32)  # not at most COLUMNS, lest the compiler forget what divides it
    return row, column, (tl.arange(0, ROWS) < rows_left)[:, None] & (tl.arange(0, COLUMNS) < columns_left)[None, :]


@triton.jit
def in_tile(row, column, rows, columns, INTERLEAVED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """How many elements a tile has of each column; of all, where a program stays in one channel."""
    own_rows = tl.maximum(tl.minimum(rows - row, ROWS), 0)
    if INTERLEAVED:
        return own_rows
    else:
        return own_rows * tl.minimum(columns - column, COLUMNS)


@triton.jit
def strided(
    row,
    column,
    stripe,
    outer,
    inner_stride,
    stripe_stride,
    inner,
    UNEVEN: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Offsets [ROWS, COLUMNS] into a tensor with :class:`~sca_kernels.gpu.plan.TileStrides`."""
    if UNEVEN:
        sample = row // inner
        position = (row - sample * inner).to(tl.int32) + tl.arange(0, ROWS)
        inner = inner.to(tl.int32)
        at = (sample + position // inner) * (outer * ALIGN) + (position % inner).to(tl.int64) * (inner_stride * ALIGN)
    else:
        at = (row + tl.arange(0, ROWS)) * (outer * ALIGN)
    return (at + stripe * (stripe_stride * ALIGN))[:, None] + (column + tl.arange(0, COLUMNS))[None, :]


@triton.jit
def dense(row, column, stripe, stripes, columns, INTERLEAVED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Offsets [ROWS, COLUMNS] into a dense tensor in the layout of x."""
    row += tl.arange(0, ROWS)
    if not INTERLEAVED:
        row = row * stripes + stripe
    return (row * columns)[:, None] + (column + tl.arange(0, COLUMNS))[None, :]


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
def own_channels(stripe, columns, fold, INTERLEAVED: tl.constexpr, COLUMNS: tl.constexpr):
    """A stripe's channels, and which there are: [COLUMNS], or [1]."""
    if INTERLEAVED:
        column = stripe * COLUMNS + tl.arange(0, COLUMNS)
        return channel_of(column, fold), column < columns
    else:
        channel = stripe + tl.arange(0, 1)
        return channel, channel >= 0


@triton.jit
def of_channel(vector, stripe, columns, fold, INTERLEAVED: tl.constexpr, COLUMNS: tl.constexpr):
    """A stripe's entries of a per-channel vector [C]: [1, COLUMNS], or a number. (Not for None: up to Triton 3.6 no
    function returns it.)"""
    if INTERLEAVED:
        channel, there = own_channels(stripe, columns, fold, INTERLEAVED, COLUMNS)
        return tl.load(vector + channel, mask=there, other=0)[None, :]
    else:
        return tl.load(vector + stripe)


@triton.jit
def listed(vector, channel, there, absent):
    """Entries of a vector or a list at channels; where there is none, ``absent``."""
    if vector is None:
        return absent
    else:
        return tl.load(vector + channel, mask=there, other=0)
