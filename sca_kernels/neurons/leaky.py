"""Leaky integrate-and-fire, with ``vr0`` the resting potential:

``h[t] = v[t-1] + (x[t] - (v[t-1] - vr0)) / tau``      (decay_input=True)
``h[t] = v[t-1] - (v[t-1] - vr0) / tau + x[t]``        (decay_input=False)

A ``rate`` in place of tau is multiplied by where these divide, as norse has it; a ``decay``, as snnTorch's beta, is
what stays (decay_input=False alone):

``h[t] = (v[t-1] - vr0) decay + vr0 + x[t]``
"""

from __future__ import annotations

from torch import Tensor

from .base import Leak


class Leaky:
    """LIF with a fixed leak."""

    name = "lif"
    takes_tau = True
    learnable_leak = False
    cpp = ("Leaky<>", "LeakyFullInput<>")
    cpp_decay = "Decaying"
    triton = "leaky"

    def charge(self, v: Tensor, x: Tensor, leak: Leak, v_rest: float, decay_input: bool) -> Tensor:
        if leak.decay is not None:
            return (v - v_rest) * leak.decay + v_rest + x
        return v + leak(x - (v - v_rest)) if decay_input else v - leak(v - v_rest) + x

    def adjoint(self, grad_h: Tensor, leak: Leak, decay_input: bool) -> tuple[Tensor, Tensor]:
        if leak.decay is not None:
            return grad_h * leak.decay, grad_h
        leaked = leak(grad_h)
        return grad_h - leaked, leaked if decay_input else grad_h


NEURON = Leaky()
