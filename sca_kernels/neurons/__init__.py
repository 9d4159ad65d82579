"""Neuron models: the charge equation and its adjoint. Fire, reset, time and sums are the same for all and live
elsewhere.

One neuron is one module of this package that defines ``NEURON``; the registry finds it by its file. Its C++ twin is a
struct in ``csrc/include/sca/neurons.h``.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from typing import NamedTuple

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

    def checked(self) -> NeuronConfig:
        """Return self, or raise TypeError / ValueError naming the argument that is off."""
        if self.neuron not in NEURONS:
            raise ValueError(f"neuron: expected one of {', '.join(NEURONS)}, got {self.neuron!r}")
        for name in ("tau", "v_threshold", "v_reset"):
            value = getattr(self, name)
            if name == "v_reset" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
            if not math.isfinite(value):
                raise ValueError(f"{name}: expected a finite number, got {value}")
        if self.neuron == "lif" and self.tau <= 1:
            raise ValueError(f"tau: expected a time constant > 1 (in steps), got {self.tau}")
        for name in ("decay_input", "detach_reset"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: expected a bool, got {type(getattr(self, name)).__name__}")
        return self
