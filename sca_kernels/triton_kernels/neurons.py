"""Triton twins of :mod:`sca_kernels.neurons`: charge, its adjoint and the leak's gradient, per element, float32.

``leak`` is tau where DIVIDE, else the factor 1 / tau (PLIF: per channel), ``rate`` always the factor. A division by tau
is IEEE; the plain operator would be an approximation and flip spikes.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from triton.runtime.jit import KernelInterface


@triton.jit
def _leaked(z, leak, DIVIDE: tl.constexpr):
    if DIVIDE:
        return tl.div_rn(z, leak)
    else:
        return z * leak


@triton.jit
def _if_charge(v, y, leak, v_rest, DECAY_INPUT: tl.constexpr, DIVIDE: tl.constexpr):
    return v + y


@triton.jit
def _if_adjoint(g_h, rate, DECAY_INPUT: tl.constexpr):
    return g_h, g_h


@triton.jit
def _leaky_charge(v, y, leak, v_rest, DECAY_INPUT: tl.constexpr, DIVIDE: tl.constexpr):
    if DECAY_INPUT:
        return v + _leaked(y - (v - v_rest), leak, DIVIDE)
    else:
        return v - _leaked(v - v_rest, leak, DIVIDE) + y


@triton.jit
def _leaky_adjoint(g_h, rate, DECAY_INPUT: tl.constexpr):
    leaked = g_h * rate
    if DECAY_INPUT:
        return g_h - leaked, leaked
    else:
        return g_h - leaked, g_h


@triton.jit
def leak_gradient(g_h, v, y, v_rest, DECAY_INPUT: tl.constexpr):
    """``dL/d(1/tau)`` of a leaky neuron."""
    if DECAY_INPUT:
        return g_h * (y - (v - v_rest))
    else:
        return g_h * (v_rest - v)


class Twin(NamedTuple):
    """The device functions of one neuron."""

    charge: KernelInterface
    adjoint: KernelInterface


_LEAKY = Twin(_leaky_charge, _leaky_adjoint)

TWINS = {"if": Twin(_if_charge, _if_adjoint), "lif": _LEAKY, "plif": _LEAKY}
