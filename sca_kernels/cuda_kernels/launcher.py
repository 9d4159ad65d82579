"""Starts the CUDA kernels over activations: the :class:`~sca_kernels.gpu.launcher.Launcher` of CUDA C++."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from ..gpu.plan import Plan, Tiles, ceil_div
from ..neurons import NeuronConfig
from .parameters import (
    NAMES,
    THREADS,
    AffineParameters,
    BackwardParameters,
    ForwardParameters,
    Launch,
    MomentsParameters,
    NeuronParameters,
    Partials,
    PreludeParameters,
    Strided,
    TileParameters,
    TrackingParameters,
    address,
)

_ACCESS_BYTES = 16
_MOST_SHARED = 48 * 1024  # bytes per block that any device gives unasked
_AHEAD = 4  # steps that a kernel loads at once
_MOST_STEPS = 1 << 20
_VECTORS = {"neuron_forward": 4, "moments": 1, "neuron_backward": 8}  # that a block has in shared memory, per channel
_QUANTITIES = {"neuron_forward": 2, "moments": 2, "neuron_backward": 3}  # that it adds up at most
_LEVELS = 3  # vectors that a neuron has beside where it is not plain


def _elements_of_access(element_size: int, align: int) -> int:
    """A kernel is compiled for accesses of 16 bytes, and for those of one element."""
    return align if align * element_size == _ACCESS_BYTES else 1


class CudaLauncher:
    """See :class:`~sca_kernels.gpu.launcher.Launcher`; launches through ``launch``."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch

    @staticmethod
    def tile_size(element_size: int, align: int, time_steps: int) -> int:
        return THREADS * _elements_of_access(element_size, align)

    def forward(
        self,
        plan: Plan,
        config: NeuronConfig,
        *,
        scale: Tensor | None,
        shift: Tensor | None,
        rate: Tensor | None,
        threshold: Tensor | None,
        fires_at: Tensor | None,
        mean: Tensor | None,
        var: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        weight_channels: Tensor | None,
        channels: Tensor | None,
        sums_spikes: Tensor | None,
        sums_l1: Tensor | None,
        sums_positions: Tensor | None,
        seen: int,
        norm: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        batches: Tensor | None,
        weight_of_batch: float,
        weight_tensor: Tensor | None,
        unbiased: float,
        finite_only: bool,
        **activations: Tensor | None,
    ) -> None:
        _check_steps(plan)
        if weight_tensor is not None and weight_tensor.dtype not in (torch.float32, torch.float64):
            weight_tensor = weight_tensor.double()
        is_double = weight_tensor is not None and weight_tensor.dtype == torch.float64
        partials = _Scratch(plan, 2)
        parameters = ForwardParameters(
            tiles=_tiles(plan.tiles, plan.channels, _width(plan)),
            neuron=NeuronParameters.of(config),
            prelude=PreludeParameters(*map(address, (scale, shift, rate, threshold, fires_at))),
            mean=address(mean),
            var=address(var),
            affine=_affine(weight, bias, weight_channels, eps),
            steps=plan.time_steps,
            x=_strided(plan, "x"),
            partials=partials.parameters,
            tracking=TrackingParameters(
                channels=address(channels),
                spikes=address(sums_spikes),
                l1=address(sums_l1),
                positions=address(sums_positions),
                batches=address(batches),
                norm=address(norm),
                running_mean=address(running_mean),
                running_var=address(running_var),
                weight_float=None if is_double else address(weight_tensor),
                weight_double=address(weight_tensor) if is_double else None,
                weight=weight_of_batch,
                unbiased=unbiased,
                finite_only=finite_only,
                seen=seen,
            ),
            **{name: address(z) for name, z in activations.items()},
        )
        is_plain = _is_plain(config, threshold, activations["potentials"])
        self._start("neuron_forward", plan, 0, parameters, is_plain)

    def moments(
        self,
        plan: Plan,
        *,
        moments: Tensor | None,
        norm: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        weight_channels: Tensor | None,
        eps: float,
        count: int,
    ) -> None:
        partials = _Scratch(plan, 2)
        parameters = MomentsParameters(
            tiles=_tiles(plan.tiles, plan.channels, _width(plan)),
            steps=plan.time_steps,
            x=_strided(plan, "x"),
            partials=partials.parameters,
            moments=address(moments),
            norm=address(norm),
            affine=_affine(weight, bias, weight_channels, eps),
            count=count,
        )
        self._start("moments", plan, _sum_bytes("moments", plan), parameters)

    def backward(
        self,
        plan: Plan,
        config: NeuronConfig,
        *,
        sums: bool,
        scale: Tensor | None,
        shift: Tensor | None,
        rate: Tensor | None,
        threshold: Tensor | None,
        fires_at: Tensor | None,
        weight: Tensor | None,
        weight_channels: Tensor | None,
        eps: float,
        grad_size: int,
        count: int,
        presentations: int,
        **tensors: Tensor | None,
    ) -> None:
        _check_steps(plan)
        width, is_plain = _width(plan), _is_plain(config, threshold, tensors["grad_h"])
        h = THREADS * width * 4
        step = h + THREADS * width * plan.x.element_size() * 2
        repeated = plan.repeats and tensors["grad_x"] is not None
        left = _MOST_SHARED - _table_bytes("neuron_backward", plan, is_plain) - h * repeated
        resident = min(plan.time_steps, left // step)
        if resident < plan.time_steps:
            resident -= resident % _AHEAD
        chunks = ceil_div(plan.time_steps, resident)
        size = plan.tiles.programs * (chunks - 1) * THREADS * width
        checkpoints = torch.empty(size, dtype=torch.float32, device=plan.x.device) if size else None
        partials = _Scratch(plan, 0 if not sums else 4 if not is_plain else 2 if rate is None else 3)
        written = (tensors[name] for name in ("first", "second", "third", "fourth"))
        parameters = BackwardParameters(
            tiles=_tiles(plan.tiles, plan.channels, width),
            neuron=NeuronParameters.of(config),
            prelude=PreludeParameters(*map(address, (scale, shift, rate, threshold, fires_at))),
            steps=plan.time_steps,
            resident=resident,
            repeated=plan.repeats,
            x=_strided(plan, "x"),
            grad_spikes=_strided(plan, "grad_spikes"),
            checkpoints=address(checkpoints),
            partials=partials.parameters,
            wide=any(z is not None and z.dtype == torch.float64 for z in written),
            affine=_affine(weight, None, weight_channels, eps),
            grad_size=grad_size,
            count=count,
            presentations=presentations,
            **{name: address(z) for name, z in tensors.items()},
        )
        self._start("neuron_backward", plan, resident * step + h * repeated, parameters, is_plain)

    def _start(self, kernel: str, plan: Plan, shared: int, parameters: ctypes.Structure, is_plain: bool = True) -> None:
        """Run a kernel that needs so many bytes of shared memory at a time with its per-channel vectors."""
        sums = _sum_bytes(kernel, plan, is_plain), _quantities(kernel, is_plain) * THREADS * 8
        shared = max(shared + _table_bytes(kernel, plan, is_plain), *sums)
        planes = str(not plan.tiles.interleaved).lower()
        name = f"sca::{kernel}<{NAMES[plan.x.dtype]}, {planes}, {_width(plan)}{'' if is_plain else ', false'}>"
        self._launch(name, plan.tiles.programs, THREADS, shared, parameters, plan.x)


def _is_plain(config: NeuronConfig, threshold: Tensor | None, potentials: Tensor | None) -> bool:
    """See ``csrc/cuda/neuron.h``; potentials, or their gradients, that leave or enter the kernel."""
    usual = config.threshold if config.v_reset is None else config.rest
    is_one_threshold = threshold is None and config.fires_at == config.threshold
    return is_one_threshold and config.by == usual and config.gain == 1 and potentials is None


class _Scratch:
    """Memory for the sums of a launch, which may go once it is queued; none for no quantities."""

    def __init__(self, plan: Plan, quantities: int) -> None:
        self.sums = plan.partials(quantities) if quantities else None
        self.counters = plan.counters() if quantities else None
        self.parameters = Partials(address(self.sums), address(self.counters))


def _check_steps(plan: Plan) -> None:
    if plan.time_steps > _MOST_STEPS:
        raise ValueError(f"time_steps: backend cuda takes at most {_MOST_STEPS} per call, got {plan.time_steps}")


def _width(plan: Plan) -> int:
    return _elements_of_access(plan.x.element_size(), plan.tiles.align)


def _table_bytes(kernel: str, plan: Plan, is_plain: bool) -> int:
    """For per-channel vectors, float32."""
    vectors = _VECTORS[kernel] + (0 if is_plain else _LEVELS)
    return 4 * vectors * (plan.tiles.tile_columns if plan.tiles.interleaved else 1)


def _sum_bytes(kernel: str, plan: Plan, is_plain: bool = True) -> int:
    """For what each thread has added up, float32."""
    return 4 * _quantities(kernel, is_plain) * THREADS * (_width(plan) if plan.tiles.interleaved else 1)


def _quantities(kernel: str, is_plain: bool) -> int:
    """The threshold's gradient among them, where one may be asked for."""
    return _QUANTITIES[kernel] + (kernel == "neuron_backward" and not is_plain)


@functools.lru_cache(maxsize=4096)
def _tiles(tiles: Tiles, channels: int, width: int) -> TileParameters:
    inner = tiles.inner if tiles.uneven else 1
    return TileParameters(
        rows=tiles.rows,
        columns=tiles.columns,
        channels=channels,
        inner=inner,
        outer_step=tiles.tile_rows // inner,
        inner_step=tiles.tile_rows % inner,
        fold=tiles.fold,
        stripes=tiles.stripes,
        splits=tiles.splits,
        group=tiles.group,
        tiles=tiles.tiles,
        tile_rows=tiles.tile_rows,
        tile_columns=tiles.tile_columns,
        column_tiles=ceil_div(tiles.columns, tiles.tile_columns),
        lane_bits=(tiles.tile_columns // width).bit_length() - 1,
        slot_bits=tiles.slots.bit_length() - 1,
    )


def _strided(plan: Plan, name: str) -> Strided:
    tensor = plan.tensors[name]
    if tensor is None:
        return Strided()
    return Strided(address(tensor), *(stride * plan.tiles.align for stride in plan.strides[name]))


def _affine(weight: Tensor | None, bias: Tensor | None, channels: Tensor | None, eps: float) -> AffineParameters:
    return AffineParameters(address(weight), address(bias), address(channels), eps)
