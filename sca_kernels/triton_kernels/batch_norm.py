"""The sums that training batch norm takes its statistics from, in Triton (:mod:`sca_kernels.gpu.batch_norm` starts
it)."""

import triton.language as tl

from .finish import by_column, finished_channels, finished_end, finished_sum, is_finishing, put_partial
from .norm import store_norm
from .tiling import in_tile, live_at, load_steps, over_tiles, own_stripe, strided, tile_at


@over_tiles
def moments_kernel(
    x,
    partials,
    counters,
    moments,
    norm,
    weight,
    bias,
    weight_channels,
    count: tl.int64,
    rows: tl.int64,
    columns: tl.int64,
    inner: tl.int64,
    fold: tl.int64,
    stripes: tl.int64,
    splits: tl.int64,
    group: tl.int64,
    tiles: tl.int64,
    time_steps: tl.int64,
    x_t: tl.int64,
    x_outer: tl.int64,
    x_inner: tl.int64,
    x_stripe: tl.int64,
    EPS: tl.constexpr,
    STEPS: tl.constexpr,
    CHUNKED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    FOLDED: tl.constexpr,
    UNEVEN: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Sums of x and x^2, see :meth:`~sca_kernels.gpu.launcher.Launcher.moments`.

    Most devices have a float64 unit for 64 of float32, so the sums of a thread are float32, of d = x - origin and of
    d^2, with the program's own first element of a column for origin, so that nothing cancels when the mean is large
    against the deviation. A thread adds up few of them, chunk by chunk; everything beyond one program is float64. In
    Triton's interpreter the mean ended within 1.2e-7 of the larger of itself and the deviation, the variance within
    7e-7 of itself.
    """
    stripe, split, first_tile = own_stripe(stripes, tiles)
    columns = columns * ALIGN
    # of the program's first row, or first element
    row, column, _ = tile_at(first_tile, stripe, rows, columns, INTERLEAVED, ROWS, COLUMNS)
    if INTERLEAVED:
        at = strided(row, column, stripe, x_outer, x_inner, x_stripe, inner, UNEVEN, ALIGN, 1, COLUMNS)
        there = (column + tl.arange(0, COLUMNS) < columns)[None, :]
    else:
        at = strided(row, column, stripe, x_outer, x_inner, x_stripe, inner, UNEVEN, ALIGN, 1, 1)
        there = at >= 0
    origin = tl.load(x + at, mask=there, other=0.0).to(tl.float32)

    sum_d = tl.zeros([ROWS, COLUMNS], tl.float32)
    sum_dd = tl.zeros([ROWS, COLUMNS], tl.float32)
    n = tiles * 0
    for i in range(tiles):
        row, column, valid = tile_at(first_tile + i, stripe, rows, columns, INTERLEAVED, ROWS, COLUMNS)
        x_at = x + strided(row, column, stripe, x_outer, x_inner, x_stripe, inner, UNEVEN, ALIGN, ROWS, COLUMNS)
        for first in range(0, time_steps if CHUNKED else STEPS, STEPS):
            xs = load_steps(x_at, first, x_t * ALIGN, valid, time_steps, STEPS, CHUNKED, False)
            chunk_d = tl.zeros([ROWS, COLUMNS], tl.float32)
            chunk_dd = tl.zeros([ROWS, COLUMNS], tl.float32)
            for t in tl.static_range(STEPS):
                d = tl.where(live_at(valid, first + t, time_steps, CHUNKED), xs[t].to(tl.float32) - origin, 0.0)
                chunk_d += d
                chunk_dd = tl.fma(d, d, chunk_dd)
            sum_d += chunk_d
            sum_dd += chunk_dd
        n += in_tile(row, column, rows, columns, INTERLEAVED, ROWS, COLUMNS)

    n = (n * time_steps).to(tl.float64)
    origin = by_column(origin, INTERLEAVED).to(tl.float64)
    d = by_column(sum_d, INTERLEAVED).to(tl.float64)
    dd = by_column(sum_dd, INTERLEAVED).to(tl.float64)
    for q in tl.static_range(2):
        sums = tl.fma(n, origin, d) if q == 0 else tl.fma(origin, tl.fma(n, origin, 2.0 * d), dd)
        put_partial(
            *(partials, q, sums, stripe, split, stripes, splits, group, fold), INTERLEAVED, FOLDED, COLUMNS, SLOTS
        )
    if is_finishing(partials, counters, stripe, split, stripes, splits, group, 2, FOLDED, SLOTS):
        for start in range(0, finished_end(columns, fold, FOLDED, COLUMNS), COLUMNS):
            channel, known = finished_channels(start, stripe, columns, fold, INTERLEAVED, FOLDED, COLUMNS)
            place = (channel, known, stripes, splits, group, fold)
            s = finished_sum(partials, 0, *place, FOLDED, COLUMNS, SLOTS)
            ss = finished_sum(partials, 1, *place, FOLDED, COLUMNS, SLOTS)
            all_channels = columns // fold if INTERLEAVED else stripes
            if moments is not None:
                tl.store(moments + channel, s, mask=known)
                tl.store(moments + all_channels + channel, ss, mask=known)
            if norm is not None:
                store_norm(*(norm, s, ss, weight, bias, weight_channels, channel, known, all_channels, count), EPS)
