"""Training batch norm in front of a neuron in Triton (twin of :mod:`sca_kernels.reference.batch_norm`).

Forward: a pass over x for the statistics, then the neuron behind an affine prelude. Backward: the neuron's adjoint
twice, first for its sums, then to write the gradient of x. The normalised current is never written to memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..neurons import NeuronConfig
from . import multistep
from .multistep import Adjoint, Current
from .tiling import (
    GEOMETRY,
    channel_of,
    launch,
    launch_per_channel,
    live_at,
    load_steps,
    program_channels,
    put_partial,
    steps_of,
    strided,
    strides_of,
    sum_partials,
    tile,
    tile_indices,
)


@triton.jit(do_not_specialize=GEOMETRY + strides_of("x"))
def deviations_kernel(
    x,
    partials,
    rows: tl.int64,
    columns: tl.int64,
    inner: tl.int64,
    fold: tl.int64,
    stripes: tl.int64,
    splits: tl.int64,
    tiles: tl.int64,
    time_steps: tl.int64,
    x_t: tl.int64,
    x_outer: tl.int64,
    x_inner: tl.int64,
    x_stripe: tl.int64,
    STEPS: tl.constexpr,
    CHUNKED: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    UNEVEN: tl.constexpr,
    ALIGN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Partial sums of d and d^2, where d is the distance to the channel's first element, so that nothing cancels when
    the mean is large against the deviation; in float64, so that mean and variance, once rounded, are every backend's.
    """
    program = tl.program_id(0).to(tl.int64)
    stripe = program % stripes
    split = program // stripes
    columns = columns * ALIGN
    if INTERLEAVED:
        own = stripe * COLUMNS + tl.arange(0, COLUMNS)
        # The stride of channels is 1, or where they are folded their size.
        origin = tl.load(x + channel_of(own, fold) * fold, mask=own < columns, other=0.0).to(tl.float64)[None, :]
    else:
        origin = tl.load(x + stripe * x_stripe * ALIGN).to(tl.float64)

    sum_d = tl.zeros([ROWS, COLUMNS], tl.float64)
    sum_dd = tl.zeros([ROWS, COLUMNS], tl.float64)
    for i in range(tiles):
        row, column, valid = tile_indices(split * tiles + i, stripe, rows, columns, INTERLEAVED, ROWS, COLUMNS)
        x_at = x + strided(row, column, stripe, x_outer, x_inner, x_stripe, inner, UNEVEN, ALIGN)
        for first in range(0, time_steps if CHUNKED else STEPS, STEPS):
            xs = load_steps(x_at, first, x_t * ALIGN, valid, time_steps, STEPS, CHUNKED, False)
            for t in tl.static_range(STEPS):
                d = tl.where(live_at(valid, first + t, time_steps, CHUNKED), xs[t].to(tl.float64) - origin, 0.0)
                sum_d += d
                sum_dd += d * d
    put_partial(partials, 0, sum_d, split, splits, stripe, stripes, columns, INTERLEAVED, COLUMNS)
    put_partial(partials, 1, sum_dd, split, splits, stripe, stripes, columns, INTERLEAVED, COLUMNS)


@triton.jit
def _per_channel(vector, channel, exists, absent):
    """A [C] vector or None as float64."""
    if vector is None:
        return tl.zeros(channel.shape, tl.float64) + absent
    else:
        return tl.load(vector + channel, mask=exists, other=0.0).to(tl.float64)


_STATISTICS = ["mean", "var", "weight", "bias", "scale", "shift"]


@triton.jit
def _store_prelude(mean, var, weight, bias, scale, shift, channel, exists, EPS: tl.constexpr):
    """scale and shift from the rounded mean and variance, in float64, rounded once."""
    a = _per_channel(weight, channel, exists, 1.0) / tl.sqrt(var.to(tl.float64) + EPS)
    b = _per_channel(bias, channel, exists, 0.0) - mean.to(tl.float64) * a
    tl.store(scale + channel, a.to(tl.float32), mask=exists)
    tl.store(shift + channel, b.to(tl.float32), mask=exists)


@triton.jit(
    do_not_specialize=["channels", "splits", "fold", "x_channel", "count"],
    do_not_specialize_on_alignment=_STATISTICS,
)
def statistics_kernel(
    x,
    partials,
    mean,
    var,
    weight,
    bias,
    scale,
    shift,
    channels: tl.int64,
    splits: tl.int64,
    fold: tl.int64,
    x_channel: tl.int64,
    count: tl.int64,
    EPS: tl.constexpr,
):
    """Mean and biased variance from the deviations, rounded to float32, and the prelude that follows."""
    channel, exists = program_channels(channels)
    origin = tl.load(x + channel * x_channel, mask=channel < tl.where(count > 0, channels, 0), other=0.0).to(tl.float64)
    n = count.to(tl.float64)
    d = sum_partials(partials, 0, channel, exists, channels, splits, fold) / n
    dd = sum_partials(partials, 1, channel, exists, channels, splits, fold) / n
    batch_mean = (origin + d).to(tl.float32)
    batch_var = tl.maximum(dd - d * d, 0.0).to(tl.float32)
    tl.store(mean + channel, batch_mean, mask=exists)
    tl.store(var + channel, batch_var, mask=exists)
    _store_prelude(batch_mean, batch_var, weight, bias, scale, shift, channel, exists, EPS)


@triton.jit(do_not_specialize=["channels"], do_not_specialize_on_alignment=_STATISTICS)
def prelude_kernel(mean, var, weight, bias, scale, shift, channels: tl.int64, EPS: tl.constexpr):
    channel, exists = program_channels(channels)
    batch_mean = tl.load(mean + channel, mask=exists, other=0.0)
    batch_var = tl.load(var + channel, mask=exists, other=0.0)
    _store_prelude(batch_mean, batch_var, weight, bias, scale, shift, channel, exists, EPS)


@triton.jit(
    do_not_specialize=["channels", "splits", "fold", "count", "presentations"],
    do_not_specialize_on_alignment=[
        "mean",
        "var",
        "weight",
        "grad_weight",
        "grad_bias",
        "grad_rate",
        "slope",
        "offset",
    ],
)
def coefficients_kernel(
    partials,
    mean,
    var,
    weight,
    grad_weight,
    grad_bias,
    grad_rate,
    slope,
    offset,
    channels: tl.int64,
    splits: tl.int64,
    fold: tl.int64,
    count: tl.int64,
    presentations: tl.int64,
    EPS: tl.constexpr,
):
    """Gradients of weight, bias and rate, and what the gradient of x, ``scale * g + slope * x + offset``, needs: each
    presentation of x subtracts the mean of g, and the mean of g * (x - mean) times (x - mean) / (var + eps)."""
    channel, exists = program_channels(channels)
    mean = _per_channel(mean, channel, exists, 0.0)
    rstd = 1.0 / tl.sqrt(_per_channel(var, channel, exists, 0.0) + EPS)
    a = _per_channel(weight, channel, exists, 1.0) * rstd
    g = sum_partials(partials, 0, channel, exists, channels, splits, fold)
    gx = sum_partials(partials, 1, channel, exists, channels, splits, fold)
    share = presentations.to(tl.float64) / count.to(tl.float64)
    b = -gx * rstd * rstd * share * a
    tl.store(slope + channel, b.to(tl.float32), mask=exists)
    tl.store(offset + channel, (-g * share * a - b * mean).to(tl.float32), mask=exists)
    if grad_weight is not None:
        tl.store(grad_weight + channel, (gx * rstd).to(tl.float32), mask=exists)
    if grad_bias is not None:
        tl.store(grad_bias + channel, g.to(tl.float32), mask=exists)
    if grad_rate is not None:
        rate = sum_partials(partials, 2, channel, exists, channels, splits, fold)
        tl.store(grad_rate + channel, rate.to(tl.float32), mask=exists)


def forward(
    x: Tensor,
    time_steps: int,
    config: NeuronConfig,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    rate: Tensor | None,
    v_init: Tensor | None,
    mask: Tensor | None,
    return_v: bool,
) -> tuple[tuple[Tensor, Tensor | None, Tensor, Tensor], Tensor, Tensor]:
    """Arguments and results as in :meth:`sca_kernels.backends.base.Backend.batch_norm_forward`."""
    channels = x.shape[2]
    tiling, _ = tile(x, x.shape[0])
    partials = tiling.partials(2, x.device)
    launch(
        deviations_kernel,
        tiling.programs,
        x,
        **tiling.arguments,
        **tiling.argument("x", 0, x),
        partials=partials,
        **steps_of(x.shape[0]).arguments(crowded=tiling.narrow),
    )
    # An operator's outputs may not share storage; scale and shift stay inside.
    mean, var = (torch.empty(channels, dtype=torch.float32, device=x.device) for _ in range(2))
    scale, shift = torch.empty((2, channels), dtype=torch.float32, device=x.device)
    launch_per_channel(
        statistics_kernel,
        channels,
        x,
        **tiling.sum_arguments(partials),
        x=x,
        mean=mean,
        var=var,
        weight=weight,
        bias=bias,
        scale=scale,
        shift=shift,
        x_channel=x.stride(2),
        count=x.numel() // channels,
        EPS=eps,
    )
    current = Current(scale, shift, rate, v_init)
    return multistep.forward(x, time_steps, config, current, mask, return_v), mean, var


def backward(
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    x: Tensor,
    time_steps: int,
    config: NeuronConfig,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    rate: Tensor | None,
    v_init: Tensor | None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight, bias, rate and v_init, as in
    :meth:`sca_kernels.backends.base.Backend.batch_norm_backward`."""
    channels = x.shape[2]
    scale, shift, slope, offset = torch.empty((4, channels), dtype=torch.float32, device=x.device)
    launch_per_channel(
        prelude_kernel,
        channels,
        x,
        mean=mean,
        var=var,
        weight=weight,
        bias=bias,
        scale=scale,
        shift=shift,
        EPS=eps,
    )
    adjoint = Adjoint(grad_spikes, grad_v, x, time_steps, config, Current(scale, shift, rate, v_init))
    g_weight, g_bias, g_rate = (None if p is None else torch.empty_like(p) for p in (weight, bias, rate))
    presentations = time_steps // x.shape[0]
    launch_per_channel(
        coefficients_kernel,
        channels,
        x,
        **adjoint.tiling.sum_arguments(adjoint.sums(center=mean)),
        mean=mean,
        var=var,
        weight=weight,
        grad_weight=g_weight,
        grad_bias=g_bias,
        grad_rate=g_rate,
        slope=slope,
        offset=offset,
        count=x.numel() // channels * presentations,
        presentations=presentations,
        EPS=eps,
    )
    g_x, g_v_init = adjoint.gradients(slope=slope, offset=offset)
    return g_x, g_weight, g_bias, g_rate, g_v_init
