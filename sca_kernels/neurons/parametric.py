"""Parametric LIF (Fang et al., ICCV 2021): LIF whose leak ``1/tau = sigmoid(w)`` is learned, per layer or per
channel."""

from __future__ import annotations

from torch import Tensor

from .leaky import Leaky


class ParametricLeaky(Leaky):
    """PLIF; the leak arrives as a factor per channel, ``leak.rate = sigmoid(w)``."""

    name = "plif"
    takes_tau = False
    learnable_leak = True

    def leak_gradient(self, grad_h: Tensor, v: Tensor, x: Tensor, v_rest: float, decay_input: bool) -> Tensor:
        return grad_h * (x - (v - v_rest) if decay_input else v_rest - v)


NEURON = ParametricLeaky()
