"""All time steps of a neuron (twin of :mod:`sca_kernels.reference.multistep`).

Nothing but x is kept for the backward pass, which recomputes h.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..layout import empty_activation, empty_state
from ..neurons import NeuronConfig
from .parameters import BackwardParameters, ForwardParameters, Launch, NeuronParameters, PreludeParameters, address
from .tiling import THREADS, Tiling, ceil_div

_MOST_SHARED = 48 * 1024  # bytes per block that any device gives unasked
_AHEAD = 4  # steps that a kernel loads at once
_MOST_STEPS = 1 << 20


class Current(NamedTuple):
    """How the input current follows from x: the affine prelude, the leak's rate and the first potential."""

    scale: Tensor | None
    shift: Tensor | None
    rate: Tensor | None
    v_init: Tensor | None

    def prelude(self) -> PreludeParameters:
        return PreludeParameters(address(self.scale), address(self.shift), address(self.rate))


def _one_step(state: Tensor | None) -> Tensor | None:
    return None if state is None else state[None]


def _check_steps(time_steps: int) -> None:
    if time_steps > _MOST_STEPS:
        raise ValueError(f"time_steps: backend cuda takes at most {_MOST_STEPS} per call, got {time_steps}")


def forward(
    launch: Launch,
    x: Tensor,
    time_steps: int,
    config: NeuronConfig,
    current: Current,
    mask: Tensor | None,
    return_v: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Spikes, final v, spike_count and membrane_l1, as in
    :meth:`sca_kernels.backends.base.Backend.neuron_forward`."""
    _check_steps(time_steps)
    spikes = empty_activation(x, time_steps)
    v_last = empty_state(x, torch.float32) if return_v else None
    spike_count = x.new_empty(x.shape[2], dtype=torch.int64)
    membrane_l1 = x.new_empty(x.shape[2], dtype=torch.float32)
    tiling = Tiling(x, time_steps, spikes=spikes, v_init=_one_step(current.v_init), v_last=_one_step(v_last))
    partials = tiling.partials(2)
    gate = None if mask is None else mask.to(torch.float32)
    parameters = ForwardParameters(
        walk=tiling.walk,
        neuron=NeuronParameters.of(config),
        prelude=current.prelude(),
        steps=time_steps,
        mask=address(gate),
        partials=address(partials),
        **tiling.strided("x", "spikes", "v_init", "v_last"),
    )
    tiling.launch(launch, "neuron_forward", tiling.table_bytes(4), parameters)
    sums = {"spike_count": spike_count, "membrane_l1": membrane_l1}
    tiling.finish(launch, "activity_sums", partials, {}, **sums)
    return spikes, v_last, spike_count, membrane_l1


class Adjoint:
    """The backward pass of one call; batch norm runs it twice, for the sums and then for grad_x."""

    def __init__(
        self,
        grad_spikes: Tensor | None,
        grad_v: Tensor | None,
        x: Tensor,
        time_steps: int,
        config: NeuronConfig,
        current: Current,
    ) -> None:
        _check_steps(time_steps)
        self.time_steps, self.current = time_steps, current
        self.grad_x = empty_activation(x, x.shape[0])
        self.grad_v_init = None if current.v_init is None else empty_state(x, torch.float32)
        self.tiling = Tiling(
            x,
            time_steps,
            grad_spikes=grad_spikes,
            grad_v=_one_step(grad_v),
            v_init=_one_step(current.v_init),
            grad_x=self.grad_x,
            grad_v_init=_one_step(self.grad_v_init),
        )
        self.neuron = NeuronParameters.of(config)

    def partials(self) -> Tensor:
        """Room for the sums of g, of g * (x - center), and of the rate's gradient where there is one."""
        return self.tiling.partials(2 if self.current.rate is None else 3)

    def run(self, launch: Launch, *outputs: str, partials: Tensor | None = None, **vectors: Tensor) -> None:
        """Write ``outputs`` (grad_x, grad_v_init) and, where given, the sums; vectors are center, slope and offset."""
        tiling, x = self.tiling, self.tiling.tensors["x"]
        repeated = "grad_x" in outputs and x.shape[0] != self.time_steps
        table = tiling.table_bytes(8)
        h = THREADS * tiling.vector * 4
        step = h + THREADS * tiling.vector * x.element_size() * 2
        resident = min(self.time_steps, (_MOST_SHARED - table - h * repeated) // step)
        if resident < self.time_steps:
            resident -= resident % _AHEAD
        chunks = ceil_div(self.time_steps, resident)
        checkpoints = x.new_empty(tiling.blocks * (chunks - 1) * THREADS * tiling.vector, dtype=torch.float32)
        tensors = "x", "grad_spikes", "grad_v", "v_init"
        parameters = BackwardParameters(
            walk=tiling.walk,
            neuron=self.neuron,
            prelude=self.current.prelude(),
            steps=self.time_steps,
            resident=resident,
            partials=address(partials),
            checkpoints=address(checkpoints),
            **tiling.strided(*tensors, *outputs),
            **{name: address(z) for name, z in vectors.items()},
        )
        tiling.launch(launch, "neuron_backward", table + resident * step + h * repeated, parameters)


def backward(
    launch: Launch,
    grad_spikes: Tensor | None,
    grad_v: Tensor | None,
    x: Tensor,
    time_steps: int,
    config: NeuronConfig,
    current: Current,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, scale, shift, rate and v_init, as in
    :meth:`sca_kernels.backends.base.Backend.neuron_backward`."""
    adjoint = Adjoint(grad_spikes, grad_v, x, time_steps, config, current)
    g_scale, g_shift, g_rate = (None if p is None else torch.empty_like(p) for p in current[:3])
    summed = any(p is not None for p in (g_scale, g_shift, g_rate))
    partials = adjoint.partials() if summed else None
    adjoint.run(launch, "grad_x", "grad_v_init", partials=partials)
    if summed:
        sums = {"grad_scale": g_scale, "grad_shift": g_shift, "grad_rate": g_rate}
        adjoint.tiling.finish(launch, "gradient_sums", partials, {}, **sums)
    return adjoint.grad_x, g_scale, g_shift, g_rate, adjoint.grad_v_init
