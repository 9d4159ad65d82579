"""Batch norm in front of a neuron, in plain PyTorch.

Statistics are taken in float64 and rounded once to float32 (scale and shift alike), so that every backend integrates
the same numbers whatever the order of its sums, and spikes can be compared bit for bit.
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


def input_gradient(
    g_y: Tensor, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, eps: float, presentations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of training batch norm: (dL/dx in x's dtype, dL/dweight [C], dL/dbias [C]).

    Args:
        g_y: dL/dy [T or 1, N, C, *S] in the state's dtype; for one step presented T times, already summed over time.
        presentations: how often each element of x is presented (T for such a step, else 1).
    """
    dims = [d for d in range(x.dim()) if d != 2]
    centred = x.to(g_y.dtype) - per_channel(mean, x[0])
    rstd = (var.double() + eps).rsqrt()
    g_bias = g_y.double().sum(dims)
    g_centred = (g_y.double() * centred).sum(dims)
    count = max(x.numel() // max(x.shape[2], 1) * presentations, 1)
    scale = rstd if weight is None else rstd * weight.double()
    # Each presentation subtracts the two means once.
    a, b = g_bias / count * presentations, rstd.square() * g_centred / count * presentations
    like = g_y[0]
    g_x = (g_y - per_channel(a, like) - centred * per_channel(b, like)) * per_channel(scale, like)
    return g_x.to(x.dtype), (g_centred * rstd).to(mean.dtype), g_bias.to(mean.dtype)
