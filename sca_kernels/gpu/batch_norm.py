"""Training batch norm in front of a neuron (twin of :mod:`sca_kernels.reference.batch_norm`).

Forward: a pass over x for the statistics, then the neuron behind an affine prelude. Backward: the neuron's adjoint
twice, first for its sums, then to write the gradient of x. The normalised current is never written to memory. Vectors
are read and gradients written through lists of channels, running statistics and activity changed by the launch that
finishes their sums: two launches each way.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..neurons import NeuronConfig
from ..tracking import Tracking
from .launcher import Launcher
from .neuron import Adjoint, Current, Outputs
from .neuron import forward as neuron_forward
from .plan import Plan


def moments(launcher: Launcher, x: Tensor) -> Tensor:
    """Sums of x and of x^2, float64 [2, C]."""
    sums = torch.empty((2, x.shape[2]), dtype=torch.float64, device=x.device)
    plan = Plan(launcher.tile_size, x, x.shape[0])
    if not plan.tiles.programs:
        return sums.zero_()
    launcher.moments(plan, moments=sums, norm=None, weight=None, bias=None, weight_channels=None, eps=0.0, count=1)
    return sums


def forward(
    launcher: Launcher,
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
    channels: Tensor | None = None,
    tracking: Tracking | None = None,
    threshold: Tensor | None = None,
    return_h: bool = False,
) -> tuple[Outputs, Tensor]:
    """Arguments and results as in :meth:`sca_kernels.backends.base.Backend.batch_norm_forward`."""
    width = x.shape[2]
    norm = torch.empty((4, width), dtype=torch.float32, device=x.device)
    plan = Plan(launcher.tile_size, x, x.shape[0])
    if plan.tiles.programs:
        launcher.moments(
            plan,
            moments=None,
            norm=norm,
            weight=weight,
            bias=bias,
            weight_channels=weight_channels(channels, width, weight, bias),
            eps=eps,
            count=x.numel() // width,
        )
    else:
        norm.fill_(math.nan)
    current = Current(norm[2], norm[3], rate, v_init, threshold)
    behind = current, mask, return_v, tracking, return_h, norm
    return neuron_forward(launcher, x, time_steps, config, *behind), norm


def backward(
    launcher: Launcher,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    x: Tensor,
    time_steps: int,
    config: NeuronConfig,
    weight: Tensor | None,
    bias: Tensor | None,
    norm: Tensor,
    eps: float,
    rate: Tensor | None,
    v_init: Tensor | None,
    channels: Tensor | None = None,
    threshold: Tensor | None = None,
    grad_h: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias, rate, v_init and threshold, as in
    :meth:`sca_kernels.backends.base.Backend.batch_norm_backward`."""
    width = x.shape[2]
    current = Current(norm[2], norm[3], rate, v_init, threshold)
    adjoint = Adjoint(launcher, grad_spikes, grad_v, x, time_steps, config, current, grad_h)
    g_weight, g_bias, g_rate, g_threshold = (
        None if p is None else torch.empty_like(p) for p in (weight, bias, rate, threshold)
    )
    given = next((p for p in (weight, bias) if p is not None), None)
    coefficients = torch.empty_like(norm[:2])
    presentations = time_steps // x.shape[0]
    adjoint.sums(
        *(g_bias, g_weight, g_rate, g_threshold),
        coefficients=coefficients,
        norm=norm,
        center=norm[0],
        weight=weight,
        weight_channels=weight_channels(channels, width, weight, bias),
        grad_size=width if given is None else given.numel(),
        eps=eps,
        count=x.numel() // max(width, 1) * presentations,
        presentations=presentations,
    )
    slope, offset = coefficients
    g_x, g_v_init = adjoint.gradients(center=norm[0], slope=slope, offset=offset)
    return g_x, g_weight, g_bias, g_rate, g_v_init, g_threshold


def sums(
    launcher: Launcher,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    x: Tensor,
    time_steps: int,
    config: NeuronConfig,
    current: Current,
    center: Tensor,
    grad_h: Tensor | None = None,
) -> Tensor:
    """As :meth:`sca_kernels.backends.base.Backend.batch_norm_sums`."""
    own = current.rate, current.threshold
    found = torch.empty((2 + sum(z is not None for z in own), x.shape[2]), dtype=torch.float64, device=x.device)
    g, gx, *others = found
    outputs = g, gx, *(None if z is None else others.pop(0) for z in own)
    Adjoint(launcher, grad_spikes, grad_v, x, time_steps, config, current, grad_h).sums(*outputs, center=center)
    return found


def gradient(
    launcher: Launcher,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    x: Tensor,
    time_steps: int,
    config: NeuronConfig,
    current: Current,
    grad_h: Tensor | None = None,
    **vectors: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """As :meth:`sca_kernels.backends.base.Backend.batch_norm_gradient`; vectors are center, slope and offset."""
    return Adjoint(launcher, grad_spikes, grad_v, x, time_steps, config, current, grad_h).gradients(**vectors)


def inference(
    launcher: Launcher,
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
    mask: Tensor | None,
    return_v: bool,
    channels: Tensor | None = None,
    threshold: Tensor | None = None,
    return_h: bool = False,
) -> Outputs:
    """The neuron behind given statistics, in one launch: as
    :meth:`sca_kernels.backends.base.Backend.batch_norm_inference`."""
    width = x.shape[2]
    statistics = {"mean": mean, "var": var, "weight": weight, "bias": bias, "eps": eps}
    listed = weight_channels(channels, width, mean)
    behind = Current(None, None, rate, v_init, threshold), mask, return_v, None, return_h
    return neuron_forward(launcher, x, time_steps, config, *behind, **statistics, weight_channels=listed)


def weight_channels(channels: Tensor | None, width: int, *vectors: Tensor | None) -> Tensor | None:
    """The list to read these vectors by; None where they are as wide as x."""
    longer = any(z is not None and z.numel() != width for z in vectors)
    return channels if longer else None
