"""Leaky integrate-and-fire, with ``vr0`` the resting potential:

``h[t] = v[t-1] + (x[t] - (v[t-1] - vr0)) / tau``      (decay_input=True)
``h[t] = v[t-1] - (v[t-1] - vr0) / tau + x[t]``        (decay_input=False)
"""

from __future__ import annotations

from torch import Tensor

from .base import Leak


class Leaky:
    """LIF with a fixed time constant ``tau > 1``."""

    name = "lif"
    takes_tau = True
    learnable_leak = False
    cpp = ("Leaky<>", "LeakyFullInput<>")
    triton = "leaky"

    def charge(self, v: Tensor, x: Tensor, leak: Leak, v_rest: float, decay_input: bool) -> Tensor:
        return v + leak(x - (v - v_rest)) if decay_input else v - leak(v - v_rest) + x

    def adjoint(self, grad_h: Tensor, leak: Leak, decay_input: bool) -> tuple[Tensor, Tensor]:
        leaked = leak(grad_h)
        return grad_h - leaked, leaked if decay_input else grad_h


NEURON = Leaky()
