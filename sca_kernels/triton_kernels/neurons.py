"""Triton twins of :mod:`sca_kernels.neurons`, whose rows name them: charge, its adjoint and the leak's gradient, per
element, float32.

LEAK says what ``leak`` is: tau, to "divide" by, the factor 1 / tau, to "multiply" by (PLIF: per channel), or the factor
of what stays, the "decay"; ``rate`` is always a factor. A division by tau is IEEE; the plain operator would be an
approximation and flip spikes.
"""

import triton
import triton.language as tl


@triton.jit
def _leaked(z, leak, LEAK: tl.constexpr):
    if LEAK == "divide":
        return tl.div_rn(z, leak)
    else:
        return z * leak


@triton.jit
def integrate_charge(v, y, leak, v_rest, DECAY_INPUT: tl.constexpr, LEAK: tl.constexpr):
    return v + y


@triton.jit
def integrate_adjoint(g_h, rate, DECAY_INPUT: tl.constexpr, LEAK: tl.constexpr):
    return g_h, g_h


@triton.jit
def leaky_charge(v, y, leak, v_rest, DECAY_INPUT: tl.constexpr, LEAK: tl.constexpr):
    if LEAK == "decay":
        return (v - v_rest) * leak + v_rest + y
    elif DECAY_INPUT:
        return v + _leaked(y - (v - v_rest), leak, LEAK)
    else:
        return v - _leaked(v - v_rest, leak, LEAK) + y


@triton.jit
def leaky_adjoint(g_h, rate, DECAY_INPUT: tl.constexpr, LEAK: tl.constexpr):
    leaked = g_h * rate
    if LEAK == "decay":
        return leaked, g_h
    elif DECAY_INPUT:
        return g_h - leaked, leaked
    else:
        return g_h - leaked, g_h


@triton.jit
def leaky_leak_gradient(g_h, v, y, v_rest, DECAY_INPUT: tl.constexpr):
    """``dL/d(1/tau)`` of a leaky neuron."""
    if DECAY_INPUT:
        return g_h * (y - (v - v_rest))
    else:
        return g_h * (v_rest - v)
