"""How per-channel sums leave the programs of a launch, and who adds them up: see :mod:`sca_kernels.gpu.plan`."""

import triton
import triton.language as tl

from .tiling import own_channels

_SUMMED = tl.constexpr(512)  # partials that a program has in flight; more would cost the kernel registers


@triton.jit
def put_partial(
    partials,
    quantity,
    sums,
    stripe,
    split,
    stripes,
    splits,
    group,
    fold,
    INTERLEAVED: tl.constexpr,
    FOLDED: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Write a program's sums, one per column ([COLUMNS]; a single number where it stays in one channel), as float64."""
    sums = sums.to(tl.float64)
    to = partials + ((quantity * partial_rows(splits, group) + split) * stripes + stripe) * SLOTS
    if FOLDED:
        column = stripe * COLUMNS + tl.arange(0, COLUMNS)
        fold = fold.to(tl.int32)
        slot = column.to(tl.int32) // fold - (stripe * COLUMNS).to(tl.int32) // fold
        of_slot = slot[:, None] == tl.arange(0, SLOTS)[None, :]
        tl.store(to + tl.arange(0, SLOTS), tl.sum(tl.where(of_slot, sums[:, None], 0.0), 0))
    elif INTERLEAVED:
        tl.store(to + tl.arange(0, COLUMNS), sums)
    else:
        tl.store(to, sums)


@triton.jit
def by_column(sums, INTERLEAVED: tl.constexpr):
    """A program's accumulators [ROWS, COLUMNS] added up: [COLUMNS], or a number."""
    if INTERLEAVED:
        return tl.sum(sums, 0)
    else:
        return tl.sum(sums)


@triton.jit
def partial_rows(splits, group):
    """Of one quantity: those of the splits, and of their groups where there are several."""
    return splits + tl.where(splits > group, (splits + group - 1) // group, 0)


@triton.jit
def _is_last(counter, expected):
    """Whether this program is the last of so many to arrive; all that the others have written is then there to see."""
    tl.debug_barrier()  # each thread has written
    is_last = tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == expected - 1
    if is_last:
        tl.store(counter, 0)  # for the next launch
    return is_last


@triton.jit
def _sum_rows(partials, first, rows, row_size, at, there, WIDTH: tl.constexpr):
    """Sums of so many rows of partials at ``at`` [WIDTH], float64, in a fixed order."""
    AT_ONCE: tl.constexpr = _SUMMED // WIDTH if WIDTH > 1 else 256
    total = tl.zeros([AT_ONCE, WIDTH], tl.float64)
    for start in range(0, rows, AT_ONCE):
        row = start + tl.arange(0, AT_ONCE)
        places = partials + ((first + row) * row_size)[:, None] + at[None, :]
        # Past the L1 cache, which does not see what other multiprocessors have written.
        live = (row < rows)[:, None] & there[None, :]
        total += tl.load(places, mask=live, other=0.0, cache_modifier=".cg")
    return tl.sum(total, 0)


@triton.jit
def is_finishing(
    partials,
    counters,
    stripe,
    split,
    stripes,
    splits,
    group,
    QUANTITIES: tl.constexpr,
    FOLDED: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """Whether this program is the last of its stripe (folded: of all), and has to finish the sums."""
    groups = (splits + group - 1) // group
    own = counters + stripe * (groups + 1)
    goes_on = groups == 1
    if groups > 1:
        of_group = (split.to(tl.int32) // group.to(tl.int32)).to(tl.int64)
        first = of_group * group
        size = tl.minimum(group, splits - first)
        if _is_last(own + 1 + of_group, size):
            slot = stripe * SLOTS + tl.arange(0, SLOTS)
            for q in tl.static_range(QUANTITIES):
                quantity = partials + q * (splits + groups) * (stripes * SLOTS)
                summed = _sum_rows(quantity, first, size, stripes * SLOTS, slot, slot >= 0, SLOTS)
                tl.store(quantity + (splits + of_group) * (stripes * SLOTS) + slot, summed)
            goes_on = groups > 1
    finishes = groups < 0
    if goes_on:
        arriving = tl.where(groups > 1, groups, splits)
        if FOLDED:
            finishes = _is_last(counters + stripes * (groups + 1), arriving * stripes)
        else:
            finishes = _is_last(own, arriving)
    return finishes


@triton.jit
def finished_end(columns, fold, FOLDED: tl.constexpr, COLUMNS: tl.constexpr):
    """The finishing program goes from 0 so far, in steps of COLUMNS: over all channels, or once."""
    if FOLDED:
        return columns // fold
    else:
        return COLUMNS


@triton.jit
def finished_channels(
    start, stripe, columns, fold, INTERLEAVED: tl.constexpr, FOLDED: tl.constexpr, COLUMNS: tl.constexpr
):
    """Channels of a step, and which there are."""
    if FOLDED:
        channel = start + tl.arange(0, COLUMNS).to(tl.int64)
        return channel, channel < columns // fold
    else:
        return own_channels(stripe, columns, fold, INTERLEAVED, COLUMNS)


@triton.jit
def finished_sum(
    partials,
    quantity,
    channel,
    there,
    stripes,
    splits,
    group,
    fold,
    FOLDED: tl.constexpr,
    COLUMNS: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """A quantity's sum over all programs, float64, per channel."""
    groups = (splits + group - 1) // group
    first = tl.where(groups > 1, splits, 0)
    rows = tl.where(groups > 1, groups, splits)
    partials += quantity * partial_rows(splits, group) * (stripes * SLOTS)
    if FOLDED:
        fold32 = fold.to(tl.int32)
        total = tl.zeros(channel.shape, tl.float64)
        stripe = ((channel * fold).to(tl.int32) // COLUMNS).to(tl.int64)
        for _ in range((fold32 - 1) // COLUMNS + 2):  # stripes that its columns may lie in
            slot = channel - ((stripe * COLUMNS).to(tl.int32) // fold32).to(tl.int64)
            touched = there & (stripe * COLUMNS < (channel + 1) * fold)
            total += _sum_rows(partials, first, rows, stripes * SLOTS, stripe * SLOTS + slot, touched, COLUMNS)
            stripe += 1
        return total
    else:
        return _sum_rows(partials, first, rows, stripes * SLOTS, channel, there, SLOTS)
