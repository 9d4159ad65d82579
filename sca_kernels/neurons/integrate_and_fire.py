"""Integrate-and-fire: ``h[t] = v[t-1] + x[t]``."""

from __future__ import annotations

from torch import Tensor

from .base import Leak


class IntegrateAndFire:
    """IF has no leak: tau and decay_input do not enter."""

    name = "if"
    takes_tau = False
    learnable_leak = False
    cpp = ("IntegrateAndFire", "IntegrateAndFire")
    triton = "integrate"

    def charge(self, v: Tensor, x: Tensor, leak: Leak, v_rest: float, decay_input: bool) -> Tensor:
        return v + x

    def adjoint(self, grad_h: Tensor, leak: Leak, decay_input: bool) -> tuple[Tensor, Tensor]:
        return grad_h, grad_h


NEURON = IntegrateAndFire()
