"""What kernels are told: twins of the structures in ``csrc/cuda/parameters.h``, all of eight-byte members."""

from __future__ import annotations

import ctypes
from typing import Protocol

from torch import Tensor

from .. import twins
from ..neurons import NeuronConfig


def _integers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_int64) for name in names]


def _pointers(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_void_p) for name in names]


def _reals(*names: str) -> list[tuple[str, type]]:
    return [(name, ctypes.c_double) for name in names]


class Strided(ctypes.Structure):
    _fields_ = _pointers("data") + _integers("t", "outer", "inner", "stripe")


class Walk(ctypes.Structure):
    _fields_ = _integers(
        "places", "inner", "stripes", "lanes", "columns", "fold", "splits", "items", "rows", "outer_step", "inner_step"
    )


class NeuronParameters(ctypes.Structure):
    _fields_ = _integers("charge", "reset", "surrogate", "detach") + _reals(
        "rate", "threshold", "rest", "alpha", "beta"
    )

    @classmethod
    def of(cls, config: NeuronConfig) -> NeuronParameters:
        """Rows of the lists at the foot of ``csrc/include/sca/{neurons,surrogates}.h``, and numbers."""
        structs = {
            "SCA_CHARGES": twins.charge(config),
            "SCA_RESETS": twins.reset(config),
            "SCA_SURROGATES": twins.surrogate(config),
        }
        numbers = config.leak, config.v_threshold, config.v_rest, config.alpha, config.beta
        return cls(*(twins.row(*pair) for pair in structs.items()), config.detach_reset, *numbers)


class PreludeParameters(ctypes.Structure):
    _fields_ = _pointers("scale", "shift", "rate")


class ForwardParameters(ctypes.Structure):
    _fields_ = [
        ("walk", Walk),
        ("neuron", NeuronParameters),
        ("prelude", PreludeParameters),
        *_integers("steps"),
        *((name, Strided) for name in ("x", "spikes", "v_init", "v_last")),
        *_pointers("mask", "partials"),
    ]


class BackwardParameters(ctypes.Structure):
    _fields_ = [
        ("walk", Walk),
        ("neuron", NeuronParameters),
        ("prelude", PreludeParameters),
        *_integers("steps", "resident"),
        *((name, Strided) for name in ("x", "grad_spikes", "grad_v", "v_init", "grad_x", "grad_v_init")),
        *_pointers("center", "slope", "offset", "partials", "checkpoints"),
    ]


class MomentsParameters(ctypes.Structure):
    _fields_ = [("walk", Walk), *_integers("steps"), ("x", Strided), *_pointers("partials")]


class SumsParameters(ctypes.Structure):
    _fields_ = [
        *_integers("channels", "fold", "splits"),
        *_pointers("partials"),
        *_reals("count", "presentations", "eps"),
        *_pointers("spike_count", "membrane_l1", "weight", "bias", "mean", "var", "scale", "shift", "slope", "offset"),
        *_pointers("grad_scale", "grad_shift", "grad_rate"),
    ]


class BitpackParameters(ctypes.Structure):
    _fields_ = _integers("numel") + _pointers("spikes", "packed", "valid")


SIZES = {
    structure.__name__: ctypes.sizeof(structure)
    for structure in (ForwardParameters, BackwardParameters, MomentsParameters, SumsParameters, BitpackParameters)
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
