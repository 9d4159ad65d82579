"""All time steps of a neuron in Triton: one forward and one backward kernel for every neuron, surrogate, reset and
layout (twin of :mod:`sca_kernels.reference.multistep`; :mod:`sca_kernels.gpu.neuron` starts them).

Nothing but x is kept for the backward pass, which recomputes h: in registers where T is short, else chunk by chunk,
after a first pass that writes v at the start of each chunk to a scratch buffer of the program.
"""

import triton
import triton.language as tl

from .finish import by_column, finished_channels, finished_end, finished_sum, is_finishing, put_partial
from .norm import coefficients_of_norm, prelude, store_listed
from .tiling import (
    dense,
    exists,
    listed,
    live_at,
    load_steps,
    of_channel,
    over_tiles,
    own_channels,
    own_stripe,
    strided,
    tile_at,
)


@triton.jit
def _affine(x, scale, shift):
    y = x.to(tl.float32)
    if scale is not None:
        y = y * scale
    if shift is not None:
        y = y + shift
    return y


@triton.jit
def _levels(
    threshold,
    fires_at,
    v_threshold,
    v_fires_at,
    v_by,
    v_rest,
    stripe,
    columns,
    fold,
    SOFT: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The least potential that fires, the threshold, and what the reset does by; per channel where a threshold is."""
    if threshold is not None:
        v_threshold = of_channel(threshold, stripe, columns, fold, INTERLEAVED, COLUMNS)
        v_fires_at = of_channel(fires_at, stripe, columns, fold, INTERLEAVED, COLUMNS)
    elif v_threshold is None:
        v_threshold = v_fires_at
    if v_by is None:
        v_by = v_threshold if SOFT else v_rest
    return v_fires_at, v_threshold, v_by


@triton.jit
def _after_spike(h, fired, by, SOFT: tl.constexpr):
    if SOFT:
        return tl.where(fired, h - by, h)
    else:
        return tl.where(fired, by, h)


@triton.jit
def _initial(v_init, at, valid, v_rest):
    if v_init is None:
        return tl.zeros(at.shape, tl.float32) + v_rest
    else:
        return tl.load(v_init + at, mask=valid, other=0.0)


@triton.jit
def _moved(running, new, weight, finite):
    """A running statistic moved towards a new one, as torch.lerp does it; where that is finite."""
    by = new - running
    weight += tl.zeros_like(by)
    moved = tl.where(tl.abs(weight) < 0.5, tl.fma(weight, by, running), tl.fma(-by, 1 - weight, new))
    return tl.where(finite, moved, running)


@triton.jit
def _finish_activity(
    count,
    l1,
    channel,
    there,
    spike_count,
    membrane_l1,
    channels,
    sums_spikes,
    sums_l1,
    sums_positions,
    seen,
    norm,
    running_mean,
    running_var,
    weight_of_batch,
    weight_tensor,
    unbiased,
    all_channels,
    FINITE_ONLY: tl.constexpr,
):
    """What is made of some channels' sums, see :meth:`~sca_kernels.gpu.launcher.Launcher.forward`."""
    l1 = l1.to(tl.float32)
    tl.store(spike_count + channel, count.to(tl.int64), mask=there)
    tl.store(membrane_l1 + channel, l1, mask=there)
    at = listed(channels, channel, there, channel)
    if sums_spikes is not None:
        old = tl.load(sums_spikes + at, mask=there, other=0)
        tl.store(sums_spikes + at, old + count.to(tl.int64), mask=there)
        old = tl.load(sums_l1 + at, mask=there, other=0.0)
        tl.store(sums_l1 + at, old + l1.to(tl.float64), mask=there)
        old = tl.load(sums_positions + at, mask=there, other=0)
        tl.store(sums_positions + at, old + seen, mask=there)
    if running_mean is not None:
        weight = weight_of_batch if weight_tensor is None else tl.load(weight_tensor).to(tl.float32)
        mean = tl.load(norm + channel, mask=there, other=0.0)
        var = tl.load(norm + all_channels + channel, mask=there, other=0.0) * unbiased
        finite = (tl.abs(mean) < float("inf")) & (tl.abs(var) < float("inf"))  # not where one is NaN
        if not FINITE_ONLY:
            finite = there
        old = tl.load(running_mean + at, mask=there, other=0.0)
        tl.store(running_mean + at, _moved(old, mean, weight, finite), mask=there)
        old = tl.load(running_var + at, mask=there, other=0.0)
        tl.store(running_var + at, _moved(old, var, weight, finite), mask=there)


@over_tiles
def forward_kernel(
    x,
    spikes,
    v_init,
    v_last,
    potentials,
    scale,
    shift,
    rate,
    threshold,
    fires_at,
    mask,
    mean,
    var,
    weight,
    bias,
    weight_channels,
    partials,
    counters,
    spike_count,
    membrane_l1,
    channels,
    sums_spikes,
    sums_l1,
    sums_positions,
    norm,
    running_mean,
    running_var,
    weight_tensor,
    batches,
    weight_of_batch: tl.float32,
    unbiased: tl.float32,
    seen: tl.int64,
    leak: tl.float32,
    v_fires_at: tl.float32,
    v_threshold,
    v_by,
    v_rest: tl.float32,
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
    FINITE_ONLY: tl.constexpr,
    STEPS: tl.constexpr,
    CHUNKED: tl.constexpr,
    REPEAT: tl.constexpr,
    CHARGE: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    LEAK: tl.constexpr,
    SOFT: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    FOLDED: tl.constexpr,
    UNEVEN: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    stripe, split, first_tile = own_stripe(stripes, tiles)
    columns = columns * ALIGN
    step = rows * columns if INTERLEAVED else rows * columns * stripes
    if mean is not None:
        channel, there = own_channels(stripe, columns, fold, INTERLEAVED, COLUMNS)
        at = listed(weight_channels, channel, there, channel)
        scale, shift = prelude(
            tl.load(mean + at, mask=there, other=0.0),
            tl.load(var + at, mask=there, other=1.0),
            weight,
            bias,
            at,
            there,
            EPS,
        )
        scale = scale[None, :]
        shift = shift[None, :]
    else:
        if scale is not None:
            scale = of_channel(scale, stripe, columns, fold, INTERLEAVED, COLUMNS)
        if shift is not None:
            shift = of_channel(shift, stripe, columns, fold, INTERLEAVED, COLUMNS)
    if rate is not None:
        leak = of_channel(rate, stripe, columns, fold, INTERLEAVED, COLUMNS)
    v_fires_at, v_threshold, by = _levels(
        *(threshold, fires_at, v_threshold, v_fires_at, v_by, v_rest, stripe, columns, fold),
        *(SOFT, INTERLEAVED, COLUMNS),
    )
    if mask is not None:
        mask = of_channel(mask, stripe, columns, fold, INTERLEAVED, COLUMNS) != 0

    count = tl.zeros([ROWS, COLUMNS], tl.int32)
    l1 = tl.zeros([ROWS, COLUMNS], tl.float32)
    for i in range(tiles):
        row, column, valid = tile_at(first_tile + i, stripe, rows, columns, INTERLEAVED, ROWS, COLUMNS)
        x_at = x + strided(row, column, stripe, x_outer, x_inner, x_stripe, inner, UNEVEN, ALIGN, ROWS, COLUMNS)
        at = dense(row, column, stripe, stripes, columns, INTERLEAVED, ROWS, COLUMNS)
        v = _initial(v_init, at, valid, v_rest)
        tile_count = tl.zeros([ROWS, COLUMNS], tl.int32)
        tile_l1 = tl.zeros([ROWS, COLUMNS], tl.float32)
        for first in range(0, time_steps if CHUNKED else STEPS, STEPS):
            xs = load_steps(x_at, first, x_t * ALIGN, valid, time_steps, STEPS, CHUNKED, REPEAT)
            for t in tl.static_range(STEPS):
                is_step = exists(first + t, time_steps, CHUNKED)
                h = CHARGE(v, _affine(xs[t], scale, shift), leak, v_rest, DECAY_INPUT, LEAK)
                fired = h >= v_fires_at
                v = tl.where(is_step, _after_spike(h, fired, by, SOFT), v)
                tile_count += (fired & is_step).to(tl.int32)
                tile_l1 += tl.where(is_step, tl.abs(v - v_rest), 0.0)
                emitted = tl.where(fired if mask is None else fired & mask, 1.0, 0.0)
                live = live_at(valid, first + t, time_steps, CHUNKED)
                tl.store(spikes + (first + t) * step + at, emitted.to(spikes.dtype.element_ty), mask=live)
                if potentials is not None:
                    tl.store(potentials + (first + t) * step + at, h, mask=live)
        count += tl.where(valid, tile_count, 0)
        l1 += tl.where(valid, tile_l1, 0.0)
        if v_last is not None:
            tl.store(v_last + at, v, mask=valid)

    for q in tl.static_range(2):
        sums = by_column(count if q == 0 else l1, INTERLEAVED)
        put_partial(
            *(partials, q, sums, stripe, split, stripes, splits, group, fold), INTERLEAVED, FOLDED, COLUMNS, SLOTS
        )
    if is_finishing(partials, counters, stripe, split, stripes, splits, group, 2, FOLDED, SLOTS):
        for start in range(0, finished_end(columns, fold, FOLDED, COLUMNS), COLUMNS):
            summed, known = finished_channels(start, stripe, columns, fold, INTERLEAVED, FOLDED, COLUMNS)
            place = (summed, known, stripes, splits, group, fold)
            _finish_activity(
                finished_sum(partials, 0, *place, FOLDED, COLUMNS, SLOTS),
                finished_sum(partials, 1, *place, FOLDED, COLUMNS, SLOTS),
                summed,
                known,
                spike_count,
                membrane_l1,
                channels,
                sums_spikes,
                sums_l1,
                sums_positions,
                seen,
                norm,
                running_mean,
                running_var,
                weight_of_batch,
                weight_tensor,
                unbiased,
                columns // fold if INTERLEAVED else stripes,
                FINITE_ONLY,
            )
        if batches is not None and (FOLDED or stripe == 0):
            tl.store(batches, tl.load(batches) + 1)


@triton.jit
def _potentials(
    v,
    xs,
    scale,
    shift,
    leak,
    v_fires_at,
    by,
    v_rest,
    STEPS: tl.constexpr,
    CHARGE: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    LEAK: tl.constexpr,
    SOFT: tl.constexpr,
):
    """h at every step of a chunk, and v after the last (beyond the end: of no meaning)."""
    hs = ()
    for t in tl.static_range(STEPS):
        h = CHARGE(v, _affine(xs[t], scale, shift), leak, v_rest, DECAY_INPUT, LEAK)
        v = _after_spike(h, h >= v_fires_at, by, SOFT)
        hs += (h,)
    return hs, v


@triton.jit
def _input_gradient(g, x, scale, center, slope, offset):
    if scale is not None:
        g = g * scale
    if slope is not None:
        g += tl.fma(slope + tl.zeros_like(g), x.to(tl.float32) - center, offset + tl.zeros_like(g))
    return g


@over_tiles
def backward_kernel(
    grad_spikes,
    grad_v,
    grad_h,
    x,
    v_init,
    grad_x,
    grad_v_init,
    scale,
    shift,
    rate,
    threshold,
    fires_at,
    center,
    slope,
    offset,
    partials,
    counters,
    checkpoints,
    first,
    second,
    third,
    fourth,
    coefficients,
    norm,
    weight,
    weight_channels,
    count: tl.int64,
    presentations: tl.int64,
    grad_size: tl.int64,
    leak: tl.float32,
    v_fires_at: tl.float32,
    v_threshold,
    v_by,
    v_rest: tl.float32,
    alpha: tl.float32,
    beta: tl.float32,
    gain,
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
    grad_spikes_t: tl.int64,
    grad_spikes_outer: tl.int64,
    grad_spikes_inner: tl.int64,
    grad_spikes_stripe: tl.int64,
    EPS: tl.constexpr,
    STEPS: tl.constexpr,
    CHUNKED: tl.constexpr,
    REPEAT: tl.constexpr,
    CHARGE: tl.constexpr,
    ADJOINT: tl.constexpr,
    LEAK_GRADIENT: tl.constexpr,
    SURROGATE: tl.constexpr,
    DECAY_INPUT: tl.constexpr,
    LEAK: tl.constexpr,
    SOFT: tl.constexpr,
    DETACH_RESET: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    FOLDED: tl.constexpr,
    UNEVEN: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """With g the gradient of the input current: grad_x = scale * g + slope * (x - center) + offset, and sums of g, of
    g * (x - center), and of the rate's and the threshold's gradients, see
    :meth:`~sca_kernels.gpu.launcher.Launcher.backward`. What is None is not read, written or summed. Where a tile
    reaches beyond the tensors, the gradients that come in are loaded as zeros, and all that follow from them are zeros.

    Behind the threshold nothing has to be rounded as the equations say: there multiplications and additions are fused.
    """
    stripe, split, first_tile = own_stripe(stripes, tiles)
    columns = columns * ALIGN
    step = rows * columns if INTERLEAVED else rows * columns * stripes
    if scale is not None:
        scale = of_channel(scale, stripe, columns, fold, INTERLEAVED, COLUMNS)
    if shift is not None:
        shift = of_channel(shift, stripe, columns, fold, INTERLEAVED, COLUMNS)
    if center is not None:
        center = of_channel(center, stripe, columns, fold, INTERLEAVED, COLUMNS)
    if slope is not None:
        slope = of_channel(slope, stripe, columns, fold, INTERLEAVED, COLUMNS)
    if offset is not None:
        offset = of_channel(offset, stripe, columns, fold, INTERLEAVED, COLUMNS)
    if rate is not None:
        leak = of_channel(rate, stripe, columns, fold, INTERLEAVED, COLUMNS)
    v_fires_at, v_threshold, by = _levels(
        *(threshold, fires_at, v_threshold, v_fires_at, v_by, v_rest, stripe, columns, fold),
        *(SOFT, INTERLEAVED, COLUMNS),
    )
    # Only h must be rounded as the equations say: its gradient is multiplied by the reciprocal.
    rate_of_leak = 1.0 / leak if LEAK == "divide" else leak
    chunks = tl.cdiv(time_steps, STEPS) if CHUNKED else 1
    if CHUNKED:
        own_row = tl.program_id(0).to(tl.int64) * chunks * ROWS + tl.arange(0, ROWS)
        checkpoints += (own_row * COLUMNS)[:, None] + tl.arange(0, COLUMNS)[None, :]

    sum_g = tl.zeros([ROWS, COLUMNS], tl.float32)
    sum_gx = tl.zeros([ROWS, COLUMNS], tl.float32)
    sum_rate = tl.zeros([ROWS, COLUMNS], tl.float32)
    sum_threshold = tl.zeros([ROWS, COLUMNS], tl.float32)
    for i in range(tiles):
        row, column, valid = tile_at(first_tile + i, stripe, rows, columns, INTERLEAVED, ROWS, COLUMNS)
        x_at = x + strided(row, column, stripe, x_outer, x_inner, x_stripe, inner, UNEVEN, ALIGN, ROWS, COLUMNS)
        at = dense(row, column, stripe, stripes, columns, INTERLEAVED, ROWS, COLUMNS)
        v = _initial(v_init, at, valid, v_rest)
        if CHUNKED:
            tl.debug_barrier()  # other threads may still read what the last tile left here
            for chunk in range(chunks - 1):
                tl.store(checkpoints + chunk * (ROWS * COLUMNS), v)
                xs = load_steps(x_at, chunk * STEPS, x_t * ALIGN, valid, time_steps, STEPS, CHUNKED, REPEAT)
                hs, v = _potentials(
                    v, xs, scale, shift, leak, v_fires_at, by, v_rest, STEPS, CHARGE, DECAY_INPUT, LEAK, SOFT
                )
            tl.store(checkpoints + (chunks - 1) * (ROWS * COLUMNS), v)
            tl.debug_barrier()

        g_v = _initial(grad_v, at, valid, 0.0)
        g_x = tl.zeros([ROWS, COLUMNS], tl.float32)  # of a repeated step
        for back in range(chunks):
            chunk = chunks - 1 - back
            begin = chunk * STEPS
            xs = load_steps(x_at, begin, x_t * ALIGN, valid, time_steps, STEPS, CHUNKED, REPEAT)
            if grad_spikes is not None:
                g_at = grad_spikes + strided(
                    *(row, column, stripe, grad_spikes_outer, grad_spikes_inner, grad_spikes_stripe, inner),
                    *(UNEVEN, ALIGN, ROWS, COLUMNS),
                )
                g_s = load_steps(g_at, begin, grad_spikes_t * ALIGN, valid, time_steps, STEPS, CHUNKED, False)
            if CHUNKED:
                v = tl.load(checkpoints + chunk * (ROWS * COLUMNS))
            hs, _ = _potentials(
                v, xs, scale, shift, leak, v_fires_at, by, v_rest, STEPS, CHARGE, DECAY_INPUT, LEAK, SOFT
            )
            for t in tl.static_range(STEPS - 1, -1, -1):
                is_step = exists(begin + t, time_steps, CHUNKED)
                h = hs[t]
                fired = h >= v_fires_at
                spike_slope = SURROGATE(h - v_threshold, alpha, beta)
                if gain is not None:
                    spike_slope *= gain
                g_h = g_v if SOFT else tl.where(fired, 0.0, g_v)
                g_threshold = tl.zeros([ROWS, COLUMNS], tl.float32)
                if SOFT and v_by is None:
                    g_threshold = tl.where(fired, g_v, 0.0)
                if not DETACH_RESET:
                    by_reset = g_v * ((-by) if SOFT else (by - h))
                    g_h = tl.fma(by_reset, spike_slope, g_h)
                    g_threshold = tl.fma(by_reset, spike_slope, g_threshold)
                if grad_spikes is not None:
                    g_h = tl.fma(g_s[t].to(tl.float32), spike_slope, g_h)
                    g_threshold = tl.fma(g_s[t].to(tl.float32), spike_slope, g_threshold)
                if threshold is not None and partials is not None:
                    sum_threshold -= tl.where(is_step, g_threshold, 0.0)
                if grad_h is not None:
                    live = live_at(valid, begin + t, time_steps, CHUNKED)
                    g_h += tl.load(grad_h + (begin + t) * step + at, mask=live, other=0.0)
                if rate is not None and partials is not None:
                    v_before = v
                    if t > 0:
                        v_before = _after_spike(hs[t - 1], hs[t - 1] >= v_fires_at, by, SOFT)
                    y = _affine(xs[t], scale, shift)
                    sum_rate += tl.where(is_step, LEAK_GRADIENT(g_h, v_before, y, v_rest, DECAY_INPUT), 0.0)
                g_before, g = ADJOINT(g_h, rate_of_leak, DECAY_INPUT, LEAK)
                g_v = tl.where(is_step, g_before, g_v)
                g = tl.where(is_step, g, 0.0)
                if partials is not None:
                    centered = xs[t].to(tl.float32)
                    if center is not None:
                        centered -= center
                    sum_g += g
                    sum_gx = tl.fma(g, centered, sum_gx)
                if REPEAT:
                    g_x += g
                elif grad_x is not None:
                    g = _input_gradient(g, xs[t], scale, center, slope, offset)
                    live = live_at(valid, begin + t, time_steps, CHUNKED)
                    tl.store(grad_x + (begin + t) * step + at, g.to(grad_x.dtype.element_ty), mask=live)
        if REPEAT and grad_x is not None:
            g_x = _input_gradient(g_x, tl.load(x_at, mask=valid, other=0.0), scale, center, slope, offset)
            tl.store(grad_x + at, g_x.to(grad_x.dtype.element_ty), mask=valid)
        if grad_v_init is not None:
            tl.store(grad_v_init + at, g_v, mask=valid)

    if partials is not None:
        OWN: tl.constexpr = 2 if rate is None else 3  # in front of the threshold's
        QUANTITIES: tl.constexpr = OWN if threshold is None else OWN + 1
        for q in tl.static_range(QUANTITIES):
            sums = by_column(
                sum_g if q == 0 else sum_gx if q == 1 else sum_rate if q < OWN else sum_threshold, INTERLEAVED
            )
            put_partial(
                *(partials, q, sums, stripe, split, stripes, splits, group, fold), INTERLEAVED, FOLDED, COLUMNS, SLOTS
            )
        if is_finishing(partials, counters, stripe, split, stripes, splits, group, QUANTITIES, FOLDED, SLOTS):
            all_channels = columns // fold if INTERLEAVED else stripes
            for start in range(0, finished_end(columns, fold, FOLDED, COLUMNS), COLUMNS):
                channel, there = finished_channels(start, stripe, columns, fold, INTERLEAVED, FOLDED, COLUMNS)
                place = (channel, there, stripes, splits, group, fold)
                if coefficients is not None or first is not None:
                    by_shift = finished_sum(partials, 0, *place, FOLDED, COLUMNS, SLOTS)
                if coefficients is not None or second is not None:
                    by_scale = finished_sum(partials, 1, *place, FOLDED, COLUMNS, SLOTS)
                if coefficients is not None:
                    by_scale = coefficients_of_norm(
                        *(coefficients, norm, weight, weight_channels, by_shift, by_scale, channel, there),
                        *(all_channels, count, presentations, EPS),
                    )
                if first is not None:
                    store_listed(first, by_shift, weight_channels, channel, there, all_channels, grad_size)
                if second is not None:
                    store_listed(second, by_scale, weight_channels, channel, there, all_channels, grad_size)
                if third is not None:
                    by_rate = finished_sum(partials, 2, *place, FOLDED, COLUMNS, SLOTS)
                    tl.store(third + channel, by_rate.to(third.dtype.element_ty), mask=there)
                if fourth is not None:
                    by_threshold = finished_sum(partials, OWN, *place, FOLDED, COLUMNS, SLOTS)
                    tl.store(fourth + channel, by_threshold.to(fourth.dtype.element_ty), mask=there)
