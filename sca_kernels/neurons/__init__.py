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

from .. import checks
from .base import Leak, Neuron

__all__ = ["NEURONS", "Leak", "Neuron", "NeuronConfig"]

NEURONS: dict[str, Neuron] = {
    module.NEURON.name: module.NEURON
    for module in (
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__) if m.name != "base"
    )
}


class NeuronConfig(NamedTuple):
    """Everything about a neuron that is known before the first kernel starts; checked by :meth:`checked`."""

    neuron: str
    tau: float
    v_threshold: float
    v_reset: float | None
    decay_input: bool
    detach_reset: bool
    surrogate: str
    alpha: float
    beta: float

    @property
    def v_rest(self) -> float:
        """``vr0`` of the equations: the potential that the leak decays to and a sequence starts from."""
        return 0.0 if self.v_reset is None else self.v_reset

    @property
    def divides_by_tau(self) -> bool:
        """Whether kernels divide by tau. Else they multiply by its reciprocal, which is learned, or the same number: of
        a power of two."""
        return not NEURONS[self.neuron].learnable_leak and math.frexp(self.tau)[0] != 0.5

    @property
    def leak(self) -> float:
        """tau or 1 / tau, as kernels want it where no rate per channel takes its place."""
        learned = NEURONS[self.neuron].learnable_leak
        return self.tau if self.divides_by_tau or learned else 1 / self.tau

    def checked(self) -> NeuronConfig:
        """Return self with plain numbers, or raise TypeError / ValueError naming the argument that is off."""
        checks.one_of("neuron", self.neuron, NEURONS)
        tau, v_threshold = checks.number("tau", self.tau), checks.number("v_threshold", self.v_threshold)
        v_reset = None if self.v_reset is None else checks.number("v_reset", self.v_reset)
        if NEURONS[self.neuron].takes_tau and tau <= 1:
            raise ValueError(f"tau: expected a time constant > 1 (in steps), got {tau}")
        for name in ("decay_input", "detach_reset"):
            checks.boolean(name, getattr(self, name))
        return self._replace(tau=tau, v_threshold=v_threshold, v_reset=v_reset)
