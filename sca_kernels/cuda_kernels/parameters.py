"""What kernels are told: twins of the structures in ``csrc/cuda/parameters.h``, all of eight-byte members."""

from __future__ import annotations

import ctypes
from typing import Protocol

import torch
from torch import Tensor

from .. import twins
from ..neurons import NeuronConfig

THREADS = 128
"""Of a block."""
NAMES = {torch.float32: "float", torch.bfloat16: "sca::bfloat16", torch.float16: "sca::float16"}
"""C++ name of each dtype that the kernels take."""


def _integers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_int64) for name in names]


def _pointers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_void_p) for name in names]


def _reals(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_double) for name in names]


class TileParameters(ctypes.Structure):
    _fields_ = [
        *_integers("rows", "columns", "channels", "inner", "outer_step", "inner_step", "fold"),
        *_integers("stripes", "splits", "group", "tiles", "tile_rows", "tile_columns", "column_tiles"),
        *_integers("lane_bits", "slot_bits"),
    ]


class Partials(ctypes.Structure):
    _fields_ = _pointers("sums", "counters")


class Strided(ctypes.Structure):
    _fields_ = _pointers("data") + _integers("t", "outer", "inner", "stripe")


class NeuronParameters(ctypes.Structure):
    _fields_ = [
        *_integers("charge", "reset", "surrogate", "detach", "subtracts"),
        *_reals("rate", "threshold", "fires_at", "by", "rest", "alpha", "beta", "gain"),
    ]

    @classmethod
    def of(cls, config: NeuronConfig) -> NeuronParameters:
        """Rows of the lists at the foot of ``csrc/include/sca/{neurons,surrogates}.h``, and numbers."""
        structs = {
            "SCA_CHARGES": twins.charge(config),
            "SCA_RESETS": twins.reset(config),
            "SCA_SURROGATES": twins.surrogate(config),
        }
        rows = (twins.row(*pair) for pair in structs.items())
        levels = config.threshold, config.fires_at, config.by, config.rest
        numbers = config.leak, *levels, config.alpha, config.beta, config.gain
        return cls(*rows, config.detach_reset, config.subtracts_threshold, *numbers)


class PreludeParameters(ctypes.Structure):
    _fields_ = _pointers("scale", "shift", "rate", "threshold", "fires_at")


class AffineParameters(ctypes.Structure):
    _fields_ = _pointers("weight", "bias", "channels") + _reals("eps")


class TrackingParameters(ctypes.Structure):
    _fields_ = [
        *_pointers("channels", "spikes", "l1", "positions", "batches", "norm", "running_mean", "running_var"),
        *_pointers("weight_float", "weight_double"),
        *_reals("weight", "unbiased"),
        *_integers("finite_only", "seen"),
    ]


class ForwardParameters(ctypes.Structure):
    _fields_ = [
        ("tiles", TileParameters),
        ("neuron", NeuronParameters),
        ("prelude", PreludeParameters),
        *_pointers("mean", "var"),
        ("affine", AffineParameters),
        *_integers("steps"),
        ("x", Strided),
        *_pointers("spikes", "v_init", "v_last", "potentials", "mask"),
        ("partials", Partials),
        *_pointers("spike_count", "membrane_l1"),
        ("tracking", TrackingParameters),
    ]


class BackwardParameters(ctypes.Structure):
    _fields_ = [
        ("tiles", TileParameters),
        ("neuron", NeuronParameters),
        ("prelude", PreludeParameters),
        *_integers("steps", "resident", "repeated"),
        *((name, Strided) for name in ("x", "grad_spikes")),
        *_pointers("grad_v", "v_init", "grad_h", "grad_x", "grad_v_init", "center", "slope", "offset", "checkpoints"),
        ("partials", Partials),
        *_integers("wide"),
        *_pointers("first", "second", "third", "fourth", "coefficients", "norm"),
        ("affine", AffineParameters),
        *_integers("grad_size"),
        *_reals("count", "presentations"),
    ]


class MomentsParameters(ctypes.Structure):
    _fields_ = [
        ("tiles", TileParameters),
        *_integers("steps"),
        ("x", Strided),
        ("partials", Partials),
        *_pointers("moments", "norm"),
        ("affine", AffineParameters),
        *_reals("count"),
    ]


class BitpackParameters(ctypes.Structure):
    _fields_ = _integers("numel") + _pointers("spikes", "packed", "valid")


SIZES = {
    structure.__name__: ctypes.sizeof(structure)
    for structure in (ForwardParameters, BackwardParameters, MomentsParameters, BitpackParameters)
}
"""Bytes of each structure; whoever compiled the kernels must agree."""


def address(z: Tensor | None) -> int | None:
    """Where a tensor's data begins; None for none."""
    if z is None:
        return None
    where = z.data_ptr()
    if not where and z.numel() and not z.is_meta:  # kernels take 0 for none
        raise ValueError(f"expected tensors with memory, got one {tuple(z.shape)} whose storage was freed")
    return where


class Launch(Protocol):
    """Start a kernel on the current stream of the device of ``on``.

    Args:
        kernel: a C++ expression of the list in ``csrc/cuda/kernels.h``.
        grid: blocks, at least one. threads: per block. shared: bytes of dynamic shared memory per block.
    """

    def __call__(
        self, kernel: str, grid: int, threads: int, shared: int, parameters: ctypes.Structure, on: Tensor
    ) -> None: ...
