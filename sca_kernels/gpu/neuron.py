"""All time steps of a neuron (twin of :mod:`sca_kernels.reference.multistep`): a launch forward, and one backward.

Nothing but x is kept for the backward pass, which recomputes h.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..layout import empty_activation, empty_state
from ..neurons import NeuronConfig, fires_at
from ..tracking import Tracking, change
from .launcher import Launcher
from .plan import Plan


class Current(NamedTuple):
    """What a neuron has per channel beside its configuration, and the first potential: the affine prelude, by which the
    input current follows from x, the leak's rate and the threshold."""

    scale: Tensor | None = None
    shift: Tensor | None = None
    rate: Tensor | None = None
    v_init: Tensor | None = None
    threshold: Tensor | None = None

    def vectors(self, config: NeuronConfig) -> dict[str, Tensor | None]:
        """Those per channel, by name, and the least potentials that fire, as numbers are in the configuration."""
        at = None if self.threshold is None else fires_at(self.threshold, config)
        named = {"scale": self.scale, "shift": self.shift, "rate": self.rate, "threshold": self.threshold}
        return {**named, "fires_at": at}


class Outputs(NamedTuple):
    """Spikes [T, N, C, *S], final v [N, C, *S] or None, spike_count int64 [C], membrane_l1 float32 [C], and potentials
    before each reset [T, N, C, *S] or None."""

    spikes: Tensor
    v: Tensor | None
    spike_count: Tensor
    membrane_l1: Tensor
    h: Tensor | None


def forward(
    launcher: Launcher,
    x: Tensor,
    time_steps: int,
    config: NeuronConfig,
    current: Current,
    mask: Tensor | None,
    return_v: bool,
    tracking: Tracking | None = None,
    return_h: bool = False,
    norm: Tensor | None = None,
    **statistics: Any,
) -> Outputs:
    """Arguments as of :meth:`sca_kernels.backends.base.Backend.neuron_forward`.

    Args:
        tracking: what the launch changes in place beside; running statistics move towards the first rows of norm
            [4, C].
        statistics: mean, var, weight, bias, eps and weight_channels in place of the current's scale and shift, see
            :class:`Launcher`.
    """
    plan = Plan(launcher.tile_size, x, time_steps, v_init=current.v_init)
    out = Outputs(
        empty_activation(x, time_steps),
        empty_state(x, torch.float32) if return_v else None,
        torch.empty(x.shape[2], dtype=torch.int64, device=x.device),
        torch.empty(x.shape[2], dtype=torch.float32, device=x.device),
        empty_activation(x, time_steps, torch.float32) if return_h else None,
    )
    if not plan.tiles.programs:
        out.spike_count.zero_()
        out.membrane_l1.zero_()
        return out
    by_kernel, by_torch = _divided(tracking)
    launcher.forward(
        plan,
        config,
        spikes=out.spikes,
        v_init=plan.tensors["v_init"],
        v_last=out.v,
        potentials=out.h,
        **current.vectors(config),
        mask=mask,
        spike_count=out.spike_count,
        membrane_l1=out.membrane_l1,
        **{"mean": None, "var": None, "weight": None, "bias": None, "eps": 0.0, "weight_channels": None, **statistics},
        **_tracked(by_kernel, norm),
    )
    change(out.spike_count, out.membrane_l1, norm, by_torch)
    return out


def _divided(tracking: Tracking | None) -> tuple[Tracking, Tracking]:
    """What the launch changes, and what torch does: vectors with gaps, and statistics of another dtype than float32."""
    asked = Tracking(0) if tracking is None else tracking
    ours = theirs = asked
    if asked.running is None or all(z.dtype == torch.float32 and z.is_contiguous() for z in asked.running):
        theirs = theirs._replace(running=None)
    else:
        ours = ours._replace(running=None)
    if asked.sums is None or all(z.is_contiguous() for z in asked.sums):
        theirs = theirs._replace(sums=None)
    else:
        ours = ours._replace(sums=None)
    return ours, theirs


def _tracked(asked: Tracking, norm: Tensor | None) -> dict[str, Any]:
    """The launcher's arguments for it."""
    spikes, l1, positions = (None, None, None) if asked.sums is None else asked.sums
    moves = asked.running is not None
    mean, var = asked.running if moves else (None, None)
    by_tensor = isinstance(asked.weight, Tensor)
    return {
        "channels": asked.channels,
        "sums_spikes": spikes,
        "sums_l1": l1,
        "sums_positions": positions,
        "seen": asked.seen,
        "norm": norm if moves else None,
        "running_mean": mean,
        "running_var": var,
        "batches": asked.batches if moves else None,
        "weight_of_batch": 0.0 if by_tensor else float(asked.weight),
        "weight_tensor": asked.weight if by_tensor else None,
        "unbiased": asked.unbiased,
        "finite_only": asked.finite_only,
    }


SUMS = "first", "second", "third", "fourth"
"""The launcher's names for the sums of g, of g * (x - center), and of the rate's and the threshold's gradients."""


class Adjoint:
    """The backward pass of one call; batch norm runs it twice, for the sums and then for grad_x."""

    def __init__(
        self,
        launcher: Launcher,
        grad_spikes: Tensor | None,
        grad_v: Tensor | None,
        x: Tensor,
        time_steps: int,
        config: NeuronConfig,
        current: Current,
        grad_h: Tensor | None = None,
    ) -> None:
        self.launcher, self.config, self.current = launcher, config, current
        dense = {"grad_v": grad_v, "v_init": current.v_init, "grad_h": grad_h}
        self.plan = Plan(launcher.tile_size, x, time_steps, grad_spikes, **dense)

    def _run(self, **arguments: Any) -> None:
        absent = (*SUMS, "grad_x", "grad_v_init", "center", "slope", "offset")
        absent += ("coefficients", "norm", "weight", "weight_channels")
        numbers = {"sums": False, "eps": 0.0, "count": 1, "presentations": 1, "grad_size": 0}
        tensors = {name: self.plan.tensors[name] for name in ("grad_v", "v_init", "grad_h")}
        vectors = self.current.vectors(self.config)
        self.launcher.backward(
            self.plan, self.config, **{**dict.fromkeys(absent), **numbers, **tensors, **vectors, **arguments}
        )

    def sums(self, *outputs: Tensor | None, **arguments: Any) -> None:
        """Write the sums of g, of g * (x - center) and of the rate's and the threshold's gradients, each where it is
        wanted; or what follows from them, see :class:`Launcher`."""
        if self.plan.tiles.programs:
            self._run(sums=True, **dict(zip(SUMS, outputs, strict=True)), **arguments)
        else:
            zeros(*outputs, arguments.get("coefficients"))

    def gradients(self, *outputs: Tensor | None, **arguments: Any) -> tuple[Tensor, Tensor | None]:
        """Gradients of x and of v_init (None where there was none); ``slope`` and ``offset`` enter that of x. With
        outputs the sums are written as well."""
        x = self.plan.x
        grad_x = empty_activation(x, x.shape[0])
        grad_v_init = None if self.current.v_init is None else empty_state(x, torch.float32)
        wanted = any(z is not None for z in outputs)
        if self.plan.tiles.programs:
            named = dict(zip(SUMS, outputs, strict=False))
            self._run(grad_x=grad_x, grad_v_init=grad_v_init, sums=wanted, **named, **arguments)
        else:
            zeros(*outputs)
        return grad_x, grad_v_init


def zeros(*outputs: Tensor | None) -> None:
    """Sums over nothing."""
    for z in outputs:
        if z is not None:
            z.zero_()


def backward(
    launcher: Launcher,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    x: Tensor,
    time_steps: int,
    config: NeuronConfig,
    current: Current,
    grad_h: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, scale, shift, rate, v_init and threshold, as in
    :meth:`sca_kernels.backends.base.Backend.neuron_backward`."""
    adjoint = Adjoint(launcher, grad_spikes, grad_v, x, time_steps, config, current, grad_h)
    given = current.scale, current.shift, current.rate, current.threshold
    g_scale, g_shift, g_rate, g_threshold = (None if p is None else torch.empty_like(p) for p in given)
    g_x, g_v_init = adjoint.gradients(g_shift, g_scale, g_rate, g_threshold)
    return g_x, g_scale, g_shift, g_rate, g_v_init, g_threshold
