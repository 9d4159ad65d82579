"""Batch norm per channel in Triton, in float64: what follows from statistics and from sums (twin of
:mod:`sca_kernels.reference.batch_norm`)."""

import triton
import triton.language as tl

from .tiling import listed


@triton.jit
def prelude(mean, var, weight, bias, at, there, EPS: tl.constexpr):
    """scale and shift from the rounded mean and variance, rounded once; weight and bias are read at ``at``."""
    scale = 1.0 / tl.sqrt(var.to(tl.float64) + EPS)
    if weight is not None:
        scale = scale * tl.load(weight + at, mask=there, other=0.0).to(tl.float64)
    shift = -mean.to(tl.float64) * scale
    if bias is not None:
        shift = shift + tl.load(bias + at, mask=there, other=0.0).to(tl.float64)
    return scale.to(tl.float32), shift.to(tl.float32)


@triton.jit
def store_norm(norm, s, ss, weight, bias, weight_channels, channel, there, all_channels, count, EPS: tl.constexpr):
    """Mean and biased variance from the sums of x and x^2, rounded to float32, and the prelude that follows: the four
    rows of norm."""
    n = count.to(tl.float64)
    mean = s / n
    var = tl.maximum(ss / n - mean * mean, 0.0).to(tl.float32)
    var = tl.where(s == s, var, float("nan"))  # NaN, which a maximum drops
    mean = mean.to(tl.float32)
    at = listed(weight_channels, channel, there, channel)
    scale, shift = prelude(mean, var, weight, bias, at, there, EPS)
    tl.store(norm + channel, mean, mask=there)
    tl.store(norm + all_channels + channel, var, mask=there)
    tl.store(norm + 2 * all_channels + channel, scale, mask=there)
    tl.store(norm + 3 * all_channels + channel, shift, mask=there)


@triton.jit
def coefficients_of_norm(
    coefficients,
    norm,
    weight,
    weight_channels,
    g,
    gx,
    channel,
    there,
    all_channels,
    count,
    presentations,
    EPS: tl.constexpr,
):
    """Slope and offset of ``grad_x = scale * g + slope * (x - mean) + offset``, from the sums of g and of
    ``g * (x - mean)``: each presentation of x subtracts the mean of g, and the mean of g * (x - mean) times
    (x - mean) / (var + eps). Returns the gradient of the weight."""
    var = tl.load(norm + all_channels + channel, mask=there, other=1.0).to(tl.float64)
    rstd = 1.0 / tl.sqrt(var + EPS)
    scale = rstd
    if weight is not None:
        at = listed(weight_channels, channel, there, channel)
        scale = rstd * tl.load(weight + at, mask=there, other=0.0).to(tl.float64)
    factor = -scale * presentations.to(tl.float64) / count.to(tl.float64)
    tl.store(coefficients + channel, (factor * rstd * rstd * gx).to(tl.float32), mask=there)
    tl.store(coefficients + all_channels + channel, (factor * g).to(tl.float32), mask=there)
    return gx * rstd


@triton.jit
def store_listed(vector, values, index, channel, there, all_channels, size):
    """Write values to a vector of so many entries where a sorted list says, zero to all others: each entry of the list
    clears what lies between the one before it and itself, the last also what follows. Without a list: one for one."""
    values = values.to(vector.dtype.element_ty)
    at = listed(index, channel, there, channel)
    tl.store(vector + at, values, mask=there)
    if index is not None:
        zeros = tl.zeros_like(values)
        before = tl.load(index + channel - 1, mask=there & (channel > 0), other=-1)
        gap = tl.where(there, at - before, 0)
        for i in range(1, tl.max(gap)):
            tl.store(vector + before + i, zeros, mask=i < gap)
        rest = tl.where(there & (channel == all_channels - 1), size - at, 0)
        for i in range(1, tl.max(rest)):
            tl.store(vector + at + i, zeros, mask=i < rest)
