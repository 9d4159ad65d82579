"""Which row of the surrogates' table a derivative is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from sca_kernels.surrogates import TABLE, Surrogate, SurrogateRow

from .numbers import own_modes, rounder_numbers

__all__ = ["Sample", "SurrogateFit", "fitted_surrogate", "probe_surrogate", "slope_of"]

ACCEPTED = {torch.float64: 1e-6, torch.float32: 1e-5}
"""Largest residual of a surrogate, by what its values are computed in."""


class SurrogateFit(NamedTuple):
    """What :func:`probe_surrogate` found.

    Attributes:
        surrogate: ours, or None where no row fits.
        residual: largest difference of the best row, as a share of the largest value; infinite where nothing was
            compared.
        best: the best row's name.
        fire: ">=", ">", or "" where that is not known.
        reason: why there is none, in words.
    """

    surrogate: Surrogate | None
    residual: float
    best: str
    fire: str
    reason: str = ""


class _Slope:
    """The derivative of a spike function; ``fire``: ">=" or ">", or "" where it is no step at 0."""

    def __init__(self, spike: Callable[[Tensor], Tensor]) -> None:
        self.spike = spike
        with own_modes():
            try:
                steps = spike(torch.tensor([-1.0, -1e-6, 0.0, 1e-6, 1.0], dtype=torch.float32)).tolist()
            except Exception:  # foreign code may raise anything; probe_surrogate says so
                steps = ()
        self.fire = {(0, 0, 1, 1, 1): ">=", (0, 0, 0, 1, 1): ">"}.get(tuple(steps), "")

    def __call__(self, u: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            u = u.clone().requires_grad_()
            spikes = self.spike(u * 1)  # no leaf, which code that works in place could not take
            if not spikes.requires_grad:
                return torch.zeros_like(u.detach())
            (slope,) = torch.autograd.grad(spikes, u, torch.ones_like(spikes), allow_unused=True)
        return torch.zeros_like(u.detach()) if slope is None else slope


def slope_of(spike_function: Callable[[Tensor], Tensor]) -> _Slope:
    """The surrogate derivative of a spike function, u [M] -> spikes [M], differentiable; for :func:`probe_surrogate`,
    which asks it for ``fire``, too."""
    return _Slope(spike_function)


def probe_surrogate(slope: Callable[[Tensor], Tensor], *, names: Iterable[str] = tuple(TABLE)) -> SurrogateFit:
    """Which row of ``sca_kernels.surrogates.TABLE`` a surrogate derivative is, and with which numbers.

    It is compared at 4,001 points in [-2, 2], closer around 0, and at a few far ones, where NaN (an exponential that is
    too large) counts for nothing.

    Args:
        slope: u [M] -> derivative [M] at ``u = h - threshold``, float64, or float32 where it takes no other; of a spike
            function: :func:`slope_of`.
        names: rows to try.
    """

    def sample(u: Tensor) -> tuple[Tensor, Tensor]:
        try:
            values = slope(u.clone())
        except Exception:  # foreign code may raise anything
            values = slope(u.float())
        return u, values.detach().double()

    with own_modes():
        try:
            fit = fitted_surrogate(sample, names)
        except Exception as error:  # the same
            fit = SurrogateFit(None, math.inf, "", "", f"its surrogate fails: {type(error).__name__}: {error}")
    return fit._replace(fire=getattr(slope, "fire", ""))


Sample = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Values wanted at u [M], float64 -> u as it came to be (rounded), values [M]; float64."""


def fitted_surrogate(sample: Sample, names: Iterable[str], is_single: bool = False) -> SurrogateFit:
    """The best row; ``is_single``: the values are known to have the accuracy of float32, even if they are no numbers of
    it."""
    u, values = sample(_points())
    if not torch.equal(sample(_points())[1].nan_to_num(), values.nan_to_num()):
        return SurrogateFit(None, math.inf, "", "", "noise: the surrogate derivatives of two runs differ")
    usable = values.isfinite()
    if not usable[u.abs() <= 2].all():
        return SurrogateFit(None, math.inf, "", "", "its surrogate derivative is not finite")
    data = _Data(u[usable], values[usable], sample, is_single)
    if data.height == 0:
        return SurrogateFit(None, math.inf, "", "", "its spikes have no gradient")
    found = [row for name in names if (row := _SOLVERS.get(name, _solve_slope)(name, data)) is not None]
    fits = sorted(((data.residual(row), row) for row in found), key=lambda fit: fit[0])
    if not fits:
        return SurrogateFit(None, math.inf, "", "", "its surrogate is like none of ours")
    residual, best = fits[0]
    if not residual <= ACCEPTED[data.dtype]:
        reason = f"its surrogate is none of ours: {best.name}, the nearest, is off by {residual:.2g} of the largest"
        return SurrogateFit(None, residual, best.name, "", reason)
    # rows that are one function for some slopes: the one in its own units, else the one in rounder ones
    equal = [_snapped(row, data) for found, row in fits if found <= max(10 * residual, data.floor)]
    order = list(TABLE)
    chosen = min(equal, key=lambda row: (row.scale != 1, len(repr(row.scale)), order.index(row.name)))
    return SurrogateFit(chosen, data.residual(chosen), chosen.name, "")


def _points() -> Tensor:
    """Numbers of float32, as float64: first those that show a steep slope, or a wide one."""
    close = torch.logspace(-8, -3, 26, dtype=torch.float64)
    far = torch.tensor([2.5, 3.0, 4.0, 8.0, 16.0, 64.0, 1000.0], dtype=torch.float64)
    few = torch.cat([close, far])
    even = torch.arange(-2000, 2001, dtype=torch.float64) / 1000
    return torch.cat([few, -few, even]).float().double()


_FEW = 66
"""Points before those of the even grid."""


class _Data:
    """A surrogate derivative, sampled.

    Attributes:
        u, values: [M], float64.
        height: the largest value.
        dtype: what the values are numbers of.
        floor: residual that roundings alone make.
    """

    def __init__(self, u: Tensor, values: Tensor, sample: Sample, is_single: bool) -> None:
        self.u, self.values, self.sample = u, values, sample
        self.height = values.abs().max().item()
        is_single = is_single or torch.equal(values, values.float().double())
        self.dtype = torch.float32 if is_single else torch.float64
        self.floor = 5e-7 if is_single else 1e-13

    def residual(self, surrogate: Surrogate) -> float:
        row = TABLE[surrogate.name]

        def off(u: Tensor) -> float:
            ours = row.derivative(u, surrogate.alpha, surrogate.beta).double() * surrogate.scale
            return (ours - self.values).abs().max().item() / self.height

        # steps may be where float32 has them
        return off(self.u) if self.dtype == torch.float64 else min(off(self.u), off(self.u.float()))

    def keep(self, which: Tensor) -> None:
        """These alone."""
        self.u, self.values = self.u[which], self.values[which]

    def add(self, u: Tensor, values: Tensor) -> None:
        """More of it."""
        self.u, self.values = torch.cat([self.u, u]), torch.cat([self.values, values])

    def scaled(self, surrogate: Surrogate) -> Surrogate:
        """With the scale that fits best."""
        if surrogate.name == "rectangular":  # one point on the wrong side of an edge would count for too much
            return surrogate._replace(scale=self.values[self.u.abs().argmin()].item() / surrogate.alpha)
        ours = TABLE[surrogate.name].derivative(self.u, surrogate.alpha, surrogate.beta)
        return surrogate._replace(scale=_ratio(ours, self.values))


def _ratio(z: Tensor, values: Tensor) -> float:
    """By which number z is to be multiplied to come nearest to values."""
    square = (z @ z).item()
    return (z @ values).item() / square if square > 0 else 0.0


def _solve_slope(name: str, data: _Data) -> Surrogate | None:
    """A row with alpha and a scale: the best of many slopes, and Gauss-Newton steps from there."""
    row = TABLE[name]
    alpha = _slope(row, data.u, data.values)
    found = data.scaled(Surrogate(name, alpha))
    return found if found.scale else None


def _slope(row: SurrogateRow, u: Tensor, values: Tensor) -> float:
    few = torch.cat([u[:_FEW], u[_FEW::8]]), torch.cat([values[:_FEW], values[_FEW::8]])

    def off(p: float, u: Tensor, values: Tensor) -> tuple[float, float, Tensor]:
        z = row.derivative(u, row.least + math.exp(p), 0.0)
        scale = _ratio(z, values)
        rest = values - scale * z
        return (rest @ rest).item(), scale, rest

    p = min((math.log(10) * k / 8 for k in range(-24, 33)), key=lambda p: off(p, *few)[0])
    at, scale, rest = off(p, u, values)
    for _ in range(12):
        z, higher, lower = (row.derivative(u, row.least + math.exp(q), 0.0) for q in (p, p + 1e-6, p - 1e-6))
        by = (higher - lower) * (scale / 2e-6)
        across = by - z * _ratio(z, by)  # the scale follows
        step = max(-0.5, min(0.5, _ratio(across, rest)))
        for _ in range(3):
            tried = off(p + step, u, values)
            if tried[0] < at:
                break
            step /= 4
        else:
            break
        p, (at, scale, rest) = p + step, tried
    return row.least + math.exp(p)


def _solve_height(name: str, data: _Data) -> Surrogate | None:
    """A row whose alpha is a factor."""
    found = data.scaled(Surrogate(name, 1.0)).scale
    return Surrogate(name, abs(found), 0.0, math.copysign(1.0, found)) if found else None


def _solve_rectangle(name: str, data: _Data) -> Surrogate | None:
    """Height, and the edge, which is bisected."""
    height = data.values[data.u.abs().argmin()].item()
    away, outside = data.u.abs(), _differ(data.values, height)
    if height == 0 or not outside.any() or data.values[outside].any():
        return None
    inner, outer = away[~outside].max().item(), away[outside].min().item()
    for _ in range(7):
        if inner >= outer:  # where roundings of u end
            break
        between = torch.linspace(inner, outer, 202, dtype=torch.float64)[1:-1]
        u, values = data.sample(torch.cat([between, -between]))
        away, outside = u.abs(), _differ(values, height)
        inner, outer = max([inner, *away[~outside].tolist()]), min([outer, *away[outside].tolist()])
    if inner > outer + 1e-6:  # not the same on both sides
        return None
    edge = (inner + outer) / 2
    if inner >= outer:
        inner, outer = outer - 1e-14, inner + 1e-14
        data.keep((data.u.abs() <= inner) | (data.u.abs() >= outer))
    elif outer - inner < 1e-12:  # else that is all that a potential of float32 lets see
        nearest = torch.tensor(inner, dtype=torch.float32)
        inside = nearest if nearest.item() <= inner else torch.nextafter(nearest, -nearest)
        if data.dtype == torch.float32 or inside.item() == inner:
            # ours has its edge outside; one that has it inside is ours with an edge that float32 just tells from it
            inner, outer = inside.item(), torch.nextafter(inside, inside + 1).item()
            edge = outer
        else:
            inner, outer = inner * (1 - 1e-14), outer * (1 + 1e-14)
    data.add(torch.tensor([inner, outer], dtype=torch.float64), torch.tensor([height, 0.0], dtype=torch.float64))
    tried = [data.scaled(Surrogate(name, alpha)) for alpha in (0.5 / edge, *rounder_numbers(0.5 / edge, 1e-6))]
    return min(tried, key=data.residual)


def _differ(values: Tensor, number: float) -> Tensor:
    """By more than roundings of float32."""
    return (values - number).abs() > 1e-6 * abs(number)


def _solve_leaky(name: str, data: _Data) -> Surrogate | None:
    """One number on each side."""
    right, left = (data.values[side].median().item() for side in (data.u >= 0, data.u < 0))
    return Surrogate(name, abs(right), math.copysign(left, left * right), math.copysign(1.0, right)) if right else None


def _solve_s2nn(name: str, data: _Data) -> Surrogate | None:
    """A sigmoid on the left, a reciprocal on the right."""
    left = data.u < 0
    alpha = _slope(TABLE["sigmoid"], data.u[left], data.values[left])
    scale = _ratio(TABLE["sigmoid"].derivative(data.u[left], alpha, 0.0), data.values[left])
    right = _ratio(1 / (1 + data.u[~left]), data.values[~left])
    return Surrogate(name, alpha, right / scale, scale) if scale else None


_SOLVERS: dict[str, Callable[[str, _Data], Surrogate | None]] = {
    "rectangular": _solve_rectangle,
    "super_spike": _solve_height,
    "triangle": _solve_height,
    "leaky_k_relu": _solve_leaky,
    "s2nn": _solve_s2nn,
}


def _snapped(surrogate: Surrogate, data: _Data) -> Surrogate:
    """The same with rounder numbers, where these fit as well."""
    enough = max(1.5 * data.residual(surrogate), data.floor)

    def first(tried: Iterable[Surrogate], otherwise: Surrogate) -> Surrogate:
        return next((row for row in tried if data.residual(row) <= enough), otherwise)

    free = surrogate.name not in ("super_spike", "triangle", "leaky_k_relu")
    for field in ("alpha", "beta"):
        tried = (surrogate._replace(**{field: number}) for number in rounder_numbers(getattr(surrogate, field)))
        surrogate = first(map(data.scaled, tried) if free else tried, surrogate)
    return first((surrogate._replace(scale=number) for number in rounder_numbers(surrogate.scale)), surrogate)
