"""Triton twins of the derivatives in :data:`sca_kernels.surrogates.TABLE`, whose rows name them; per element, float32:
``u = h - threshold``.

Exponentials are taken of negative arguments only, so that no slope overflows. The slope at NaN is NaN.
"""

import triton
import triton.language as tl

_PI = tl.constexpr(3.141592653589793)
_SQRT_PI = tl.constexpr(1.7724538509055159)


@triton.jit
def sigmoid(u, alpha, beta):
    e = tl.exp(-tl.abs(alpha * u))
    return alpha * e / ((1 + e) * (1 + e))


@triton.jit
def atan(u, alpha, beta):
    z = (_PI / 2) * alpha * u
    r = tl.rsqrt(1 + z * z)  # one instruction and a product, where a division takes seven
    return (alpha / 2) * (r * r)


@triton.jit
def piecewise_quadratic(u, alpha, beta):
    a = tl.abs(u)
    return tl.where(a > 1 / alpha, 0.0, alpha - alpha * alpha * a)


@triton.jit
def rectangular(u, alpha, beta):
    a = tl.abs(u)
    return tl.where(a < 0.5 / alpha, alpha, tl.where(a >= 0.5 / alpha, 0.0, u))


@triton.jit
def soft_sign(u, alpha, beta):
    z = 1 / alpha + tl.abs(u)
    return 1 / (2 * alpha * z * z)


@triton.jit
def super_spike(u, alpha, beta):
    z = 1 + tl.abs(u)
    return alpha / (z * z)


@triton.jit
def erf(u, alpha, beta):
    z = alpha * u
    return alpha / _SQRT_PI * tl.exp(-z * z)


@triton.jit
def piecewise_exp(u, alpha, beta):
    return (alpha / 2) * tl.exp(-tl.abs(alpha * u))


@triton.jit
def triangle(u, alpha, beta):
    a = tl.abs(u)
    return tl.where(a > 1, 0.0, alpha - alpha * a)


@triton.jit
def fast_sigmoid(u, alpha, beta):
    z = 1 + alpha * tl.abs(u)
    return 1 / (z * z)


@triton.jit
def leaky_k_relu(u, alpha, beta):
    return tl.where(u >= 0, alpha, tl.where(u < 0, beta, u))


@triton.jit
def s2nn(u, alpha, beta):
    # The absolute value keeps the branch that is not taken finite.
    return tl.where(u < 0, sigmoid(u, alpha, beta), beta / (tl.abs(u) + 1))


@triton.jit
def q_pseudo_spike(u, alpha, beta):
    return tl.exp(-alpha * tl.log(1 + 2 / (alpha - 1) * tl.abs(u)))
