"""Training batch norm in front of a neuron (twin of :mod:`sca_kernels.reference.batch_norm`).

Forward: a pass over x for the statistics, then the neuron behind an affine prelude. Backward: the neuron's adjoint
twice, first for its sums, then to write the gradient of x. The normalised current is never written to memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..neurons import NeuronConfig
from . import multistep
from .multistep import Adjoint, Current
from .parameters import Launch, MomentsParameters, address
from .tiling import Tiling


def forward(
    launch: Launch,
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
    tiling = Tiling(x, x.shape[0])
    partials = tiling.partials(2)
    parameters = MomentsParameters(
        walk=tiling.walk, steps=x.shape[0], partials=address(partials), **tiling.strided("x")
    )
    tiling.launch(launch, "moments", 0, parameters)
    mean, var, scale, shift = (x.new_empty(x.shape[2], dtype=torch.float32) for _ in range(4))
    vectors = {"weight": weight, "bias": bias, "mean": mean, "var": var, "scale": scale, "shift": shift}
    numbers = {"count": x.numel() // max(x.shape[2], 1), "eps": eps}
    tiling.finish(launch, "statistics", partials, numbers, **vectors)
    current = Current(scale, shift, rate, v_init)
    return multistep.forward(launch, x, time_steps, config, current, mask, return_v), mean, var


def backward(
    launch: Launch,
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
    scale, shift, slope, offset = (torch.empty_like(mean) for _ in range(4))
    adjoint = Adjoint(grad_spikes, grad_v, x, time_steps, config, Current(scale, shift, rate, v_init))
    tiling = adjoint.tiling
    vectors = {"weight": weight, "bias": bias, "mean": mean, "var": var, "scale": scale, "shift": shift}
    tiling.finish(launch, "prelude", None, {"eps": eps}, **vectors)
    partials = adjoint.partials()
    adjoint.run(launch, partials=partials, center=mean)
    g_weight, g_bias, g_rate = (None if p is None else torch.empty_like(p) for p in (weight, bias, rate))
    presentations = time_steps // x.shape[0]
    numbers = {"count": x.numel() // max(x.shape[2], 1) * presentations, "presentations": presentations, "eps": eps}
    sums = {"grad_scale": g_weight, "grad_shift": g_bias, "grad_rate": g_rate}
    tiling.finish(launch, "coefficients", partials, numbers, **vectors, slope=slope, offset=offset, **sums)
    adjoint.run(launch, "grad_x", "grad_v_init", center=mean, slope=slope, offset=offset)
    return adjoint.grad_x, g_weight, g_bias, g_rate, adjoint.grad_v_init
