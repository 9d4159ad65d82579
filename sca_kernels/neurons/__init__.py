"""Neuron models: the charge equation and its adjoint. Fire, reset, time and sums are the same for all and live
elsewhere.

One neuron is one module of this package that defines ``NEURON``; the registry finds it by its file. It names its twins
in C++ and Triton (:class:`Neuron`).
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from .. import checks
from .base import Leak, Neuron

__all__ = ["FIRE", "NEURONS", "Leak", "Neuron", "NeuronConfig", "fires_at"]

NEURONS: dict[str, Neuron] = {
    module.NEURON.name: module.NEURON
    for module in (
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__) if m.name != "base"
    )
}


FIRE = (">=", ">")
"""How a potential fires at its threshold: ``h >= v_threshold``, or ``h > v_threshold`` (snnTorch, norse)."""


class NeuronConfig(NamedTuple):
    """Everything about a neuron that is known before the first kernel starts; checked by :meth:`checked`.

    What the first nine don't say is by default what most neurons have.

    Attributes:
        surrogate_scale: factor on the surrogate derivative.
        fire: one of :data:`FIRE`.
        v_subtract: what a soft reset subtracts; None: the threshold.
        v_rest: potential that the leak decays to and a sequence starts from; None: v_reset, or 0 under soft reset.
        leak_rate: 1 / tau as a number to multiply by, in place of tau.
        decay: 1 - 1 / tau as a number to multiply by, in place of tau; its input comes in full.
    """

    neuron: str
    tau: float
    v_threshold: float
    v_reset: float | None
    decay_input: bool
    detach_reset: bool
    surrogate: str
    alpha: float
    beta: float
    surrogate_scale: float = 1.0
    fire: str = ">="
    v_subtract: float | None = None
    v_rest: float | None = None
    leak_rate: float | None = None
    decay: float | None = None

    @property
    def rest(self) -> float:
        """``vr0`` of the equations."""
        if self.v_rest is not None:
            return self.v_rest
        return 0.0 if self.v_reset is None else self.v_reset

    @property
    def never_fires(self) -> bool:
        """Whether it is a readout: no potential reaches an infinite threshold, and no gradient comes by its spikes."""
        return self.v_threshold == math.inf

    @property
    def divides_by_tau(self) -> bool:
        """Whether kernels divide by tau. Else they multiply by its reciprocal, which is given, learned, or the same
        number: of a power of two."""
        if NEURONS[self.neuron].learnable_leak or self.leak_rate is not None or self.decay is not None:
            return False
        return math.frexp(self.tau)[0] != 0.5

    @property
    def leak(self) -> float:
        """tau, 1 / tau or the decay, as kernels want it where no rate per channel takes its place."""
        if self.decay is not None or self.leak_rate is not None:
            return self.leak_rate if self.decay is None else self.decay
        learned = NEURONS[self.neuron].learnable_leak
        return self.tau if self.divides_by_tau or learned else 1 / self.tau

    @property
    def threshold(self) -> float:
        """v_threshold as kernels subtract it: finite, since a factor of 0 does not make 0 of infinity."""
        return 0.0 if self.never_fires else self.v_threshold

    @property
    def fires_at(self) -> float:
        """The least float32 number that fires, so that kernels know one comparison only; NaN, which no number reaches,
        where none does."""
        if self.never_fires:
            return math.nan
        return above(self.v_threshold) if self.fire == ">" else self.v_threshold

    @property
    def by(self) -> float:
        """What a reset does by: the potential after a hard one, what a soft one subtracts."""
        if self.v_reset is not None:
            return self.v_reset
        return self.threshold if self.v_subtract is None else self.v_subtract

    @property
    def subtracts_threshold(self) -> bool:
        """Whether a soft reset subtracts the threshold, whatever that is."""
        return self.v_reset is None and self.v_subtract is None

    @property
    def gain(self) -> float:
        """Factor of the surrogate derivative."""
        return 0.0 if self.never_fires else self.surrogate_scale

    def checked(self) -> NeuronConfig:
        """Return self with plain numbers, or raise TypeError / ValueError naming the argument that is off."""
        checks.one_of("neuron", self.neuron, NEURONS)
        checks.one_of("fire", self.fire, FIRE)
        numbers = {"tau": checks.number("tau", self.tau)}
        if not (isinstance(self.v_threshold, float) and self.never_fires):
            numbers["v_threshold"] = checks.number("v_threshold", self.v_threshold)
        numbers["surrogate_scale"] = checks.number("scale", self.surrogate_scale)
        for field, name in (
            ("v_reset", "v_reset"),
            ("v_subtract", "v_subtract"),
            ("v_rest", "v_rest"),
            *_LEAKS.items(),
        ):
            value = getattr(self, field)
            numbers[field] = None if value is None else checks.number(name, value)
        takes_tau, given = NEURONS[self.neuron].takes_tau, [f for f in _LEAKS if numbers[f] is not None]
        if given and not takes_tau:
            raise ValueError(f"{_LEAKS[given[0]]}: expected None for neuron {self.neuron!r}, got {numbers[given[0]]}")
        if len(given) > 1:
            raise ValueError(f"rate, decay: expected one of them at most, got {numbers[given[0]]}, {numbers[given[1]]}")
        if takes_tau and not given and numbers["tau"] <= 1:
            raise ValueError(f"tau: expected a time constant > 1 (in steps), got {self.tau}")
        for field in given:
            if not 0 <= numbers[field] <= 1:
                raise ValueError(f"{_LEAKS[field]}: expected a number from 0 to 1, got {numbers[field]}")
        for name in ("decay_input", "detach_reset"):
            checks.boolean(name, getattr(self, name))
        if self.decay is not None and self.decay_input:
            raise ValueError("decay_input: expected False with a decay, whose input comes in full, got True")
        if self.v_subtract is not None and self.v_reset is not None:
            raise ValueError(
                f"v_subtract: expected None with a hard reset (v_reset={self.v_reset}), got {self.v_subtract}"
            )
        return self._replace(**numbers)


_LEAKS = {"leak_rate": "rate", "decay": "decay"}
"""Fields that take the place of tau, and what users call them."""


def fires_at(threshold: Tensor, config: NeuronConfig) -> Tensor:
    """The least numbers that fire, of thresholds; NaN where none does."""
    if config.never_fires:
        return torch.full_like(threshold, math.nan)
    return torch.nextafter(threshold, torch.full_like(threshold, math.inf)) if config.fire == ">" else threshold


def above(number: float) -> float:
    """The next number of float32."""
    return float(numpy.nextafter(numpy.float32(number), numpy.float32(math.inf)))
