"""Surrogate derivatives: what the backward pass puts in place of the derivative of the spike.

The names, formulas and default slopes are those of SpikingJelly 2.0, so that models carry over. One row of
:data:`TABLE` is one surrogate: its derivative here, its primitive (whose finite difference the tests compare it with)
and the names of its twins in C++ and Triton; :func:`sca_kernels.testing.missing_twins` says which are not there.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import checks

_Function = Callable[[Tensor, float, float], Tensor]


class SurrogateRow(NamedTuple):
    """One surrogate.

    Attributes:
        alpha, beta: default slopes.
        derivative, primitive: ``f(u, alpha, beta)``, u = h - threshold.
        cpp: the struct in ``csrc/include/sca/surrogates.h``.
        triton: the function in ``triton_kernels/surrogates.py``.
        least: alpha is larger.
    """

    alpha: float
    beta: float
    derivative: _Function
    primitive: _Function
    cpp: str = ""
    triton: str = ""
    least: float = 0.0


def __getattr__(name: str) -> object:
    if name == "Row":
        warnings.warn("sca_kernels.surrogates.Row is called SurrogateRow", DeprecationWarning, stacklevel=2)
        return SurrogateRow
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _sigmoid(u: Tensor, alpha: float, beta: float) -> Tensor:
    s = torch.sigmoid(alpha * u)
    return alpha * s * (1 - s)


def _atan(u: Tensor, alpha: float, beta: float) -> Tensor:
    return (alpha / 2) / (1 + (math.pi / 2 * alpha * u).square())


def _atan_primitive(u: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.atan(math.pi / 2 * alpha * u) / math.pi + 0.5


def _piecewise_quadratic(u: Tensor, alpha: float, beta: float) -> Tensor:
    a = u.abs()
    return torch.where(a > 1 / alpha, 0.0, alpha - alpha * alpha * a)


def _piecewise_quadratic_primitive(u: Tensor, alpha: float, beta: float) -> Tensor:
    c = u.clamp(-1 / alpha, 1 / alpha)
    return -0.5 * alpha * alpha * c.abs() * c + alpha * c + 0.5


def _rectangular(u: Tensor, alpha: float, beta: float) -> Tensor:
    a = u.abs()
    return torch.where(a < 0.5 / alpha, alpha, torch.where(a >= 0.5 / alpha, 0.0, u))


def _rectangular_primitive(u: Tensor, alpha: float, beta: float) -> Tensor:
    return (alpha * u + 0.5).clamp(0, 1)


def _soft_sign(u: Tensor, alpha: float, beta: float) -> Tensor:
    return 1 / (2 * alpha * (1 / alpha + u.abs()).square())


def _soft_sign_primitive(u: Tensor, alpha: float, beta: float) -> Tensor:
    return 0.5 * (u / (1 / alpha + u.abs()) + 1)


def _super_spike(u: Tensor, alpha: float, beta: float) -> Tensor:
    return alpha / (1 + u.abs()).square()


def _super_spike_primitive(u: Tensor, alpha: float, beta: float) -> Tensor:
    return alpha * u / (1 + u.abs())


def _erf(u: Tensor, alpha: float, beta: float) -> Tensor:
    return alpha / math.sqrt(math.pi) * torch.exp(-(alpha * u).square())


def _erf_primitive(u: Tensor, alpha: float, beta: float) -> Tensor:
    return 0.5 * (1 + torch.erf(alpha * u))


def _piecewise_exp(u: Tensor, alpha: float, beta: float) -> Tensor:
    return alpha / 2 * torch.exp(-alpha * u.abs())


def _piecewise_exp_primitive(u: Tensor, alpha: float, beta: float) -> Tensor:
    tail = 0.5 * torch.exp(-alpha * u.abs())
    return torch.where(u < 0, tail, 1 - tail)


def _triangle(u: Tensor, alpha: float, beta: float) -> Tensor:
    a = u.abs()
    return torch.where(a > 1, 0.0, alpha - alpha * a)


def _triangle_primitive(u: Tensor, alpha: float, beta: float) -> Tensor:
    c = u.clamp(-1, 1)
    return alpha * (c - 0.5 * c * c.abs() + 0.5)


def _fast_sigmoid(u: Tensor, alpha: float, beta: float) -> Tensor:
    return 1 / (1 + alpha * u.abs()).square()


def _fast_sigmoid_primitive(u: Tensor, alpha: float, beta: float) -> Tensor:
    return u / (1 + alpha * u.abs())


def _leaky_k_relu(u: Tensor, alpha: float, beta: float) -> Tensor:
    # Numbers alone would be float32; what is neither is NaN.
    return torch.where(u >= 0, torch.full_like(u, alpha), torch.where(u < 0, beta, u))


def _leaky_k_relu_primitive(u: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.where(u >= 0, alpha * u, beta * u)


def _s2nn(u: Tensor, alpha: float, beta: float) -> Tensor:
    # The clamp keeps the branch that is not taken finite.
    return torch.where(u < 0, _sigmoid(u, alpha, beta), beta / (u.clamp(min=0) + 1))


def _s2nn_primitive(u: Tensor, alpha: float, beta: float) -> Tensor:
    return torch.where(u < 0, torch.sigmoid(alpha * u), 0.5 + beta * torch.log1p(u.clamp(min=0)))


def _q_pseudo_spike(u: Tensor, alpha: float, beta: float) -> Tensor:
    return (1 + 2 / (alpha - 1) * u.abs()).pow(-alpha)


def _q_pseudo_spike_primitive(u: Tensor, alpha: float, beta: float) -> Tensor:
    tail = 0.5 * (1 + 2 / (alpha - 1) * u.abs()).pow(1 - alpha)
    return torch.where(u < 0, tail, 1 - tail)


TABLE: dict[str, SurrogateRow] = {
    "sigmoid": SurrogateRow(4.0, 0.0, _sigmoid, lambda u, a, b: torch.sigmoid(a * u), "Sigmoid", "sigmoid"),
    "atan": SurrogateRow(2.0, 0.0, _atan, _atan_primitive, "Atan", "atan"),
    "piecewise_quadratic": SurrogateRow(
        1.0,
        0.0,
        _piecewise_quadratic,
        _piecewise_quadratic_primitive,
        "PiecewiseQuadratic",
        "piecewise_quadratic",
    ),
    "rectangular": SurrogateRow(1.0, 0.0, _rectangular, _rectangular_primitive, "Rectangular", "rectangular"),
    "soft_sign": SurrogateRow(2.0, 0.0, _soft_sign, _soft_sign_primitive, "SoftSign", "soft_sign"),
    "super_spike": SurrogateRow(1.0, 0.0, _super_spike, _super_spike_primitive, "SuperSpike", "super_spike"),
    "erf": SurrogateRow(2.0, 0.0, _erf, _erf_primitive, "Erf", "erf"),
    "leaky_k_relu": SurrogateRow(1.0, 0.0, _leaky_k_relu, _leaky_k_relu_primitive, "LeakyKRelu", "leaky_k_relu"),
    "s2nn": SurrogateRow(4.0, 1.0, _s2nn, _s2nn_primitive, "S2NN", "s2nn"),
    "q_pseudo_spike": SurrogateRow(
        2.0, 0.0, _q_pseudo_spike, _q_pseudo_spike_primitive, "QPseudoSpike", "q_pseudo_spike", least=1.0
    ),
    "piecewise_exp": SurrogateRow(
        1.0, 0.0, _piecewise_exp, _piecewise_exp_primitive, "PiecewiseExponential", "piecewise_exp"
    ),
    "triangle": SurrogateRow(1.0, 0.0, _triangle, _triangle_primitive, "Triangle", "triangle"),
    "fast_sigmoid": SurrogateRow(25.0, 0.0, _fast_sigmoid, _fast_sigmoid_primitive, "FastSigmoid", "fast_sigmoid"),
}

STEEPEST = 1e18
"""The squares of a slope and of its reciprocal are numbers of float32."""
_RANGE = f"from {1 / STEEPEST:g} to {STEEPEST:g}"

_WAS_ALIAS = {"triangle": "piecewise_quadratic"}
"""Names that stood for another row once, whose formula is another for any alpha but 1."""


class Surrogate(NamedTuple):
    """A surrogate with its slope parameters, accepted wherever a surrogate's name is.

    Args:
        name: a key of :data:`TABLE`.
        alpha: slope. ``leaky_k_relu``: k. ``triangle``: the height.
        beta: second parameter of ``leaky_k_relu`` (the leak) and ``s2nn``; unused by the others.
        scale: factor on the derivative, as libraries have it that don't normalise theirs.
    """

    name: str
    alpha: float
    beta: float = 0.0
    scale: float = 1.0

    def derivative(self, u: Tensor) -> Tensor:
        """Surrogate derivative at ``u = h - v_threshold``; any shape and floating dtype, kept.

        Raises:
            TypeError, ValueError: as of :func:`resolve`, or u is no floating-point tensor.
        """
        name, alpha, beta, scale = resolve(self)
        if not checks.is_plain(u) or u.dtype not in checks.DTYPES:
            raise TypeError(f"u: expected a floating-point tensor, got {checks.describe(u)}")
        slope = TABLE[name].derivative(u, alpha, beta)
        return slope if scale == 1 else slope * scale


def resolve(surrogate: str | Surrogate, alpha: float | None = None) -> Surrogate:
    """Turn a name (and an optional slope) into a checked :class:`Surrogate`.

    Raises:
        TypeError: ``surrogate`` is neither a name nor a :class:`Surrogate`, or ``alpha`` is not a number.
        ValueError: unknown name, ``alpha`` given twice, or a slope for which the surrogate is not defined.
    """
    if not isinstance(surrogate, (str, Surrogate)):
        raise TypeError(f"surrogate: expected a name or a Surrogate, got {type(surrogate).__name__}")
    given = surrogate if isinstance(surrogate, Surrogate) else None
    if given is not None and alpha is not None:
        raise ValueError("alpha: expected None, since surrogate is a Surrogate with its own alpha")
    name = checks.one_of("surrogate", surrogate if given is None else given.name, TABLE)
    row = TABLE[name]
    if given is None:
        given = Surrogate(name, row.alpha if alpha is None else alpha, row.beta)
    slope, beta, scale = (checks.number(field, getattr(given, field)) for field in ("alpha", "beta", "scale"))
    if not row.least < slope <= STEEPEST or slope < 1 / STEEPEST:
        raise ValueError(f"alpha: {name} expects a number > {row.least:g}, {_RANGE}, got {slope}")
    if name in _WAS_ALIAS and slope != 1 and not torch.compiler.is_compiling():
        warnings.warn(
            f"surrogate {name!r} is alpha max(0, 1 - |u|) now, {slope:g} high and 2 wide; it was another name of "
            f"{_WAS_ALIAS[name]!r}, which is {slope:g} high and 2 / alpha wide",
            stacklevel=2,
        )
    return Surrogate(name, float(slope), float(beta), float(scale))
