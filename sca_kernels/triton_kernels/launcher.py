"""Starts the Triton kernels over activations: the :class:`~sca_kernels.gpu.launcher.Launcher` of Triton."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ..gpu.plan import Plan
from ..neurons import NEURONS, NeuronConfig
from ..twins import triton_of_neuron, triton_of_surrogate
from . import neurons, surrogates
from .batch_norm import moments_kernel
from .multistep import backward_kernel, forward_kernel

_WARPS = 4
_TILE_BYTES = _WARPS * 32 * 16  # of the input's dtype and one step: each thread moves 16 bytes per access
_FEW_STEPS = 4  # whose x, gradient and h fit into registers with an address per element
_MAX_STEPS = 8  # whose h fits into registers
_MOST_COLUMNS = 1 << 31  # which are counted in 32 bits; rows, and all offsets, are not
_CHUNK = 6  # steps at once of a longer sequence: a quarter of the registers goes to what going over chunks takes


class Steps(NamedTuple):
    """How a kernel goes over time: all steps at once, or, where the registers don't hold them, chunk by chunk; then T
    is a run-time argument, and sequences of all lengths share one compiled variant."""

    time_steps: int
    size: int

    @classmethod
    def of(cls, time_steps: int) -> Steps:
        return cls(time_steps, time_steps if time_steps <= _MAX_STEPS else _CHUNK)

    @property
    def chunks(self) -> int:
        """How many there are."""
        return triton.cdiv(self.time_steps, self.size)

    def arguments(self, crowded: bool) -> dict[str, Any]:
        """Kernel arguments. In a crowded kernel, one of narrow accesses or one that keeps the potentials of elements
        that come eight to a thread, more than a few steps are spread over twice as many threads: 8 bytes per access
        instead of registers spilled."""
        warps = 2 * _WARPS if crowded and self.size > _FEW_STEPS else _WARPS
        return {
            "time_steps": self.time_steps,
            "STEPS": self.size,
            "CHUNKED": self.chunks > 1,
            "num_warps": warps,
        }


def tile_size(element_size: int, align: int, time_steps: int) -> int:
    """See :meth:`sca_kernels.gpu.launcher.Launcher.tile_size`."""
    if align * element_size < 16 and time_steps > _FEW_STEPS:
        # An address each: two elements, or one access, of each thread.
        return 2 * _WARPS * 32 * max(2, align)
    return _TILE_BYTES // element_size


def forward(plan: Plan, config: NeuronConfig, *, eps: float, finite_only: bool, **arguments: Any) -> None:
    _launch(
        forward_kernel,
        plan,
        plan.partials(2),
        x=plan.x,
        **_strides("x", plan),
        **arguments,
        **_dynamics(plan, config, arguments["threshold"]),
        EPS=eps if arguments["mean"] is not None else 0.0,
        FINITE_ONLY=finite_only,
        **Steps.of(plan.time_steps).arguments(plan.narrow),
    )


def moments(plan: Plan, *, eps: float, **arguments: Any) -> None:
    _launch(
        moments_kernel,
        plan,
        plan.partials(2),
        x=plan.x,
        **_strides("x", plan),
        **arguments,
        EPS=eps,
        **Steps.of(plan.time_steps).arguments(plan.narrow),
    )


def backward(plan: Plan, config: NeuronConfig, *, sums: bool, eps: float, **arguments: Any) -> None:
    steps, checkpoints = Steps.of(plan.time_steps), None
    if steps.chunks > 1:
        size = plan.tiles.programs * steps.chunks * plan.tiles.tile_rows * plan.tiles.tile_columns
        checkpoints = torch.empty(size, dtype=torch.float32, device=plan.x.device)
    learned = NEURONS[config.neuron].learnable_leak
    _launch(
        backward_kernel,
        plan,
        plan.partials(2 + sum(arguments[name] is not None for name in ("rate", "threshold"))) if sums else None,
        x=plan.x,
        grad_spikes=plan.tensors["grad_spikes"],
        **_strides("x", plan),
        **_strides("grad_spikes", plan),
        **arguments,
        checkpoints=checkpoints,
        **_dynamics(plan, config, arguments["threshold"]),
        ADJOINT=triton_of_neuron(neurons, config, "adjoint"),
        LEAK_GRADIENT=triton_of_neuron(neurons, config, "leak_gradient") if learned else None,
        SURROGATE=triton_of_surrogate(surrogates, config),
        DETACH_RESET=config.detach_reset,
        alpha=config.alpha,
        beta=config.beta,
        gain=None if config.gain == 1 else config.gain,
        EPS=eps if arguments["coefficients"] is not None else 0.0,
        **steps.arguments(plan.narrow or plan.x.element_size() == 2),
    )


def _strides(name: str, plan: Plan) -> dict[str, int]:
    return {f"{name}_{field}": stride for field, stride in plan.strides[name]._asdict().items()}


def _dynamics(plan: Plan, config: NeuronConfig, threshold: Tensor | None) -> dict[str, Any]:
    """What both kernels need to know of a neuron. Levels that are the same number are one register: the others are
    None."""
    is_apart = threshold is None and config.threshold != config.fires_at
    resets_to_rest = config.v_reset is not None and config.by == config.rest
    return {
        "leak": config.leak,
        "v_fires_at": config.fires_at,
        "v_threshold": config.threshold if is_apart else None,
        "v_by": None if config.subtracts_threshold or resets_to_rest else config.by,
        "v_rest": config.rest,
        "REPEAT": plan.repeats,
        "CHARGE": triton_of_neuron(neurons, config, "charge"),
        "DECAY_INPUT": config.decay_input,
        "LEAK": "decay" if config.decay is not None else "divide" if config.divides_by_tau else "multiply",
        "SOFT": config.v_reset is None,
    }


def _launch(kernel, plan: Plan, partials: Tensor | None, **arguments: Any) -> None:
    """Start a kernel on the device of x. No multiply-add is fused but those that the kernels ask for: spikes equal
    those of the eager equations."""
    tiles = plan.tiles
    if tiles.columns >= _MOST_COLUMNS:
        raise ValueError(f"x: backend triton takes fewer than 2**31 positions in a row, got {tiles.columns}")
    with torch.cuda.device_of(plan.x):
        kernel[(tiles.programs,)](
            partials=partials,
            counters=None if partials is None else plan.counters(),
            rows=tiles.rows,
            columns=tiles.columns // tiles.align,
            inner=tiles.inner,
            fold=tiles.fold,
            stripes=tiles.stripes,
            splits=tiles.splits,
            group=tiles.group,
            tiles=tiles.tiles,
            INTERLEAVED=tiles.interleaved,
            FOLDED=tiles.fold > 1,
            UNEVEN=tiles.uneven,
            ALIGN=tiles.align,
            ROWS=tiles.tile_rows,
            COLUMNS=tiles.tile_columns,
            SLOTS=tiles.slots,
            enable_fp_fusion=False,
            **arguments,
        )
