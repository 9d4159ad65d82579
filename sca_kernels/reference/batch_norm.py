"""Batch norm in front of a neuron, in plain PyTorch.

Statistics are taken in float64 and rounded once to float32 (scale and shift alike), so that every backend integrates
the same numbers whatever the order of its sums, and spikes can be compared bit for bit. GPU kernels, on devices with
few units of float64, end some units in the last place from these statistics; behind the same ones their spikes are
these.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..layout import state_dtype
from .multistep import Prelude, per_channel


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel of x [T, N, C, *S], in the state's dtype, [C] each."""
    dims = [d for d in range(x.dim()) if d != 2]
    var = torch.var(x.double(), dims, correction=0)
    # A mean may lie half-way between two numbers of float32 (of four values, one in four does): the sum of a few is
    # exact, and so is the quotient then; what runs along with the variance is not.
    mean = x.double().sum(dims) / x[:, :, 0].numel()
    return mean.to(state_dtype(x)), var.to(state_dtype(x))


def prelude(mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Prelude:
    """scale = weight / sqrt(var + eps), shift = bias - mean * scale, in float64, rounded once to the dtype of
    ``mean``."""
    scale = (var.double() + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.double()
    shift = -mean.double() * scale
    if bias is not None:
        shift = shift + bias.double()
    return Prelude(scale.to(mean.dtype), shift.to(mean.dtype))


def sums(x: Tensor) -> Tensor:
    """Sums of x and of x^2 per channel of x [T, N, C, *S], float64 [2, C], to be added to those of other processes.

    A variance that is made of them has a relative error of about 1e-16 (mean / deviation)^2.
    """
    dims, z = [d for d in range(x.dim()) if d != 2], x.double()
    return torch.stack([z.sum(dims), z.square().sum(dims)])


def gradient_sums(g_y: Tensor, x: Tensor, center: Tensor) -> Tensor:
    """Sums of dL/dy and of dL/dy (x - center) per channel, float64 [2, C], which the gradient of x depends on.

    Args:
        g_y: dL/dy [T or 1, N, C, *S] in the state's dtype; for one step presented T times, already summed over time.
        center: [C], the mean.
    """
    dims, g = [d for d in range(x.dim()) if d != 2], g_y.double()
    centred = x.to(g_y.dtype) - per_channel(center, g_y[0])
    return torch.stack([g.sum(dims), (g * centred).sum(dims)])


def coefficients(
    totals: Tensor, scale: Tensor, var: Tensor, eps: float, presentations: int, count: int | Tensor
) -> tuple[Tensor, Tensor]:
    """slope and offset [C] of :func:`input_gradient`, in the dtype of ``scale``: each presentation of x subtracts the
    mean of dL/dy, and that of dL/dy (x - mean) times (x - mean) / (var + eps).

    Args:
        totals: of :func:`gradient_sums`, of all processes that the statistics are of.
        presentations: how often each element of x is presented (T for one step presented T times, else 1).
        count: values per channel of all processes, each presentation counted.
    """
    factor = scale.double() * (-presentations / count)
    return (factor / (var.double() + eps) * totals[1]).to(scale.dtype), (factor * totals[0]).to(scale.dtype)


def input_gradient(g_y: Tensor, x: Tensor, scale: Tensor, center: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """dL/dx = scale dL/dy + slope (x - center) + offset, in x's dtype; g_y as in :func:`gradient_sums`."""
    scale, center, slope, offset = (per_channel(z, g_y[0]) for z in (scale, center, slope, offset))
    return (g_y * scale + ((x.to(g_y.dtype) - center) * slope + offset)).to(x.dtype)
