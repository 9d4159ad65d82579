"""Which of our neurons a foreign one is, found out by running it: its code is not read.

Spikes and gradients are all that shows. In units of the input, a neuron of ours is ``y[t] = a v[t-1] + x[t]`` that
fires where y reaches D and goes on from a constant, or from y less a constant (the equations of
``sca_kernels.neurons``, less the resting potential, divided by the factor of the input). So D, a and the reset are
found by bisecting the last of a few currents until the neuron just fires. Where an equation rounds shows in the last
bit of such a current alone: there the candidates (tau, rate, decay, ``>=``, ``>``, a resting potential) are told apart.
The gradient of one step is the surrogate; the gradient of many, and spikes on random currents, are the test to be
passed.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from sca_kernels import functional as F
from sca_kernels.surrogates import TABLE, Surrogate, SurrogateRow

__all__ = ["NeuronFit", "SurrogateFit", "in_loop", "probe_neuron", "probe_surrogate", "slope_of"]

State = TypeVar("State")

ACCEPTED = {torch.float64: 1e-6, torch.float32: 1e-5}
"""Largest residual of a surrogate, by what its values are computed in."""
GRADIENT = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Largest difference of gradients, as a share of the largest one."""


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


class NeuronFit(NamedTuple):
    """What :func:`probe_neuron` found.

    Attributes:
        arguments: of ``sca_kernels.functional.neuron``; without "neuron", of ``sca_kernels.nn.LIF`` or ``IF``. None
            where it is none of ours.
        differing: float32 spikes that differ in the test.
        residual: largest difference of gradients in the test, as a share of the largest; of a surrogate that fits no
            row, its residual.
        exact: no spike differs, on grids that hit the threshold neither, and gradients agree; else roundings differ.
        alike: of "tau", "rate" and "decay", what no current told from what was chosen.
        reason: the first thing that does not fit, in words.
    """

    arguments: dict[str, Any] | None
    differing: int = 0
    residual: float = 0.0
    exact: bool = False
    alike: tuple[str, ...] = ()
    reason: str = ""


class _Refused(Exception):
    """No neuron of ours; says why."""

    def __init__(self, reason: str, residual: float = 0.0, differing: int = 0) -> None:
        super().__init__(reason)
        self.residual, self.differing = residual, differing


_CPU = torch.device("cpu")


@contextlib.contextmanager
def _own_modes(device: torch.device = _CPU) -> Iterator[None]:
    """No gradient where none is asked for, tensors that can have one, the CPU and the caller's random state put
    back."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type))
        if torch.get_default_device().type != "cpu":  # a mode that each call pays for
            stack.enter_context(_CPU)
        yield


# ---- surrogates


class _Slope:
    """The derivative of a spike function; ``fire``: ">=" or ">", or "" where it is no step at 0."""

    def __init__(self, spike: Callable[[Tensor], Tensor]) -> None:
        self.spike = spike
        with _own_modes():
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

    with _own_modes():
        try:
            fit = _fitted(sample, names)
        except Exception as error:  # the same
            fit = SurrogateFit(None, math.inf, "", "", f"its surrogate fails: {type(error).__name__}: {error}")
    return fit._replace(fire=getattr(slope, "fire", ""))


_Sample = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Values wanted at u [M], float64 -> u as it came to be (rounded), values [M]; float64."""


def _fitted(sample: _Sample, names: Iterable[str], is_single: bool = False) -> SurrogateFit:
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

    def __init__(self, u: Tensor, values: Tensor, sample: _Sample, is_single: bool) -> None:
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
    tried = [data.scaled(Surrogate(name, alpha)) for alpha in (0.5 / edge, *_rounder(0.5 / edge, 1e-6))]
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
        tried = (surrogate._replace(**{field: number}) for number in _rounder(getattr(surrogate, field)))
        surrogate = first(map(data.scaled, tried) if free else tried, surrogate)
    return first((surrogate._replace(scale=number) for number in _rounder(surrogate.scale)), surrogate)


# ---- numbers


def _rounder(number: float, within: float = 1e-4, most: int = 15) -> Iterator[float]:
    """Numbers near one that people write, the simplest first; ``within``: relative; ``most`` digits."""
    tried = [float(f"{number:.{digits}g}") for digits in range(1, 7)]
    tried += [float(Fraction(number).limit_denominator(largest)) for largest in (12, 64)]
    for unit in (math.pi, 1 / math.pi, math.sqrt(math.pi), 1 / math.sqrt(math.pi), math.sqrt(2), math.log(2)):
        tried += [float(f"{number / unit:.{digits}g}") * unit for digits in (1, 2, 3)]
    if abs(number) < torch.finfo(torch.float32).max:
        tried.append(torch.tensor(number, dtype=torch.float32).item())
    tried += [float(f"{number:.{digits}g}") for digits in range(7, most + 1)]
    for candidate in dict.fromkeys(tried):
        if candidate and abs(candidate - number) <= within * abs(number):
            yield candidate


def _round(number: float, within: float) -> float:
    """The simplest number not farther away than ``within``, an absolute error, or the number itself."""
    if abs(number) <= within:
        return 0.0
    return next(_rounder(number, within / abs(number), 10), number)


# ---- the foreign neuron


def in_loop(
    step: Callable[[Tensor, State], tuple[Tensor, State]], initial: Callable[[Tensor], State] | None = None
) -> Callable[[Tensor], Tensor]:
    """Code of one step as :func:`probe_neuron` wants it, of all steps.

    Args:
        step: (current [*shape], state) -> (spikes [*shape], next state).
        initial: first current [*shape] -> state; None: the state is None.
    """

    def run(x: Tensor) -> Tensor:
        state = None if initial is None else initial(x[0])
        spikes = []
        for current in x:
            spike, state = step(current, state)
            spikes.append(spike)
        return torch.stack(spikes)

    return run


class _Foreign:
    """A foreign neuron as many independent ones, lanes: x [T, M] -> spikes [T, M], M whatever is wanted.

    Attributes:
        lanes: how many a call of the shape given has.
        dtype: what it computes in, as far as is known.
        has_single: whether it makes float32 spikes of float64 currents; gradients that go through them are rounded.
        is_wide: whether a call takes more samples than the shape has, so that many lanes cost no more than a few.
    """

    def __init__(self, run: Callable[[Tensor], Tensor], shape: Sequence[int], device: torch.device | str) -> None:
        self.run, self.shape, self.device = run, tuple(shape), torch.device(device)
        self.lanes = math.prod(self.shape)
        self.dtype = torch.float32
        self.has_single = False
        self.is_wide = False

    def widen(self) -> None:
        """Take as many samples per call as are wanted, where that works and changes nothing."""
        x = _random(3, 4, 4 * self.lanes)
        narrow = self.spikes(x)
        self.is_wide = True
        try:
            if not torch.equal(self.spikes(x), narrow):
                self.is_wide = False
        except _Refused:
            self.is_wide = False

    def spikes(self, x: Tensor) -> Tensor:
        """bool [T, M]."""
        return self._call(x).detach().bool()

    def gradient(self, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Spikes, bool, and the gradient of ``(weights * spikes).sum()``; [T, M]."""
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            spikes = self._call(leaf)
            if not spikes.requires_grad:
                raise _Refused("its spikes have no gradient")
            try:
                (grad,) = torch.autograd.grad(spikes, leaf, weights, allow_unused=True)
            except RuntimeError as error:
                raise _Refused(f"its gradient can't be computed: {error}") from error
        if grad is None:
            raise _Refused("its spikes have no gradient")
        return spikes.detach().bool(), grad

    def _call(self, x: Tensor) -> Tensor:
        steps, lanes = x.shape
        part = math.prod(self.shape[1:]) if self.is_wide else self.lanes
        padded = torch.nn.functional.pad(x, (0, -lanes % part))
        width = padded.shape[1] if self.is_wide else part
        shape = (-1, *self.shape[1:]) if self.is_wide else self.shape
        done = [self._once(piece.reshape(steps, *shape)) for piece in padded.split(width, dim=1)]
        return torch.cat(done, dim=1)[:, :lanes]

    def _once(self, x: Tensor) -> Tensor:
        """x [T, *shape] -> spikes [T, M], checked."""
        given = list(x.shape)
        try:
            spikes = self.run(x.clone().to(self.device))
        except Exception as error:  # foreign code may raise anything
            raise _Refused(f"it fails on {x.dtype} currents {given}: {type(error).__name__}: {error}") from error
        if not isinstance(spikes, Tensor):
            raise _Refused(f"it returns {type(spikes).__name__}, not a tensor")
        if list(spikes.shape) != given:
            raise _Refused(f"it returns {list(spikes.shape)} for currents {given}")
        if not ((spikes == 0) | (spikes == 1)).all():
            other = spikes.detach()[(spikes != 0) & (spikes != 1)][0].item()
            raise _Refused(f"its spikes are not binary: one is {other:.6g}")
        self.has_single |= x.dtype == torch.float64 and spikes.dtype != torch.float64
        return spikes.reshape(given[0], -1).to(x.device, x.dtype)


def _random(seed: int, steps: int, lanes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers [T, M], scaled lane by lane by 0.5 to 64: thresholds are not known yet."""
    z = torch.randn(steps, lanes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (z * torch.logspace(-1, 6, 8, 2, dtype=torch.float64).repeat(lanes // 8 + 1)[:lanes]).to(dtype)


def _check_is_one_neuron(foreign: _Foreign, scale: float = 1.0) -> None:
    """It is what it is at each run, element by element, with the same numbers everywhere, now and later."""
    x = _random(0, 32, foreign.lanes) * scale
    spikes = foreign.spikes(x)
    if not torch.equal(foreign.spikes(x), spikes):
        raise _Refused("noise: two runs differ")
    if foreign.lanes > 1:
        for lane, seed in itertools.product({0, foreign.lanes - 1}, (1, 2)):
            other = _random(seed, 32, foreign.lanes).abs() * scale  # of one sign: an inhibition or a mean shows
            other[:, lane] = x[:, lane]
            if not torch.equal(foreign.spikes(other)[:, lane], spikes[:, lane]):
                raise _Refused("its spikes depend on other channels or samples")
        if not torch.equal(foreign.spikes(x.flip(1)), spikes.flip(1)):
            raise _Refused("its channels or samples are not all the same neuron")
    if not torch.equal(foreign.spikes(x[:11]), spikes[:11]):
        raise _Refused("its spikes depend on later steps, or on how many there are")
    if not torch.equal(foreign.spikes(torch.cat([torch.zeros_like(x[:5]), x]))[5:], spikes):
        raise _Refused("it changes with time: five steps without a current make a difference")


def _check_gradient_is_one(foreign: _Foreign) -> None:
    """The gradient is there, is the same at each run, and is that of each element alone."""
    x, weights = _random(4, 8, foreign.lanes), torch.zeros(8, foreign.lanes, dtype=torch.float32)
    weights[:, 0] = 1
    grad, again = (foreign.gradient(x, weights)[1].nan_to_num() for _ in range(2))
    if not torch.equal(grad, again):
        raise _Refused("noise: the gradients of two runs differ")
    if grad[:, 1:].any():
        raise _Refused("its gradient depends on other channels or samples")


# ---- its equation


class _Equation(NamedTuple):
    """``y[t] = decay v[t-1] + x[t]``, in units of x. It fires where y reaches ``level``; then ``v = reset``
    (``is_hard``) or ``v = y - reset``. ``within``: error of these, as a share of the level."""

    level: float
    decay: float
    is_hard: bool
    reset: float
    within: float

    def boundary(self, x: Tensor) -> Tensor:
        """The last current that just fires, [M], after currents x [T, M], float64."""
        v = torch.zeros_like(x[0])
        for current in x:
            y = self.decay * v + current
            v = torch.where(y >= self.level, self.reset if self.is_hard else y - self.reset, y)
        return self.level - self.decay * v


def _level(foreign: _Foreign, dtype: torch.dtype) -> float:
    """The least current that fires at once."""
    amplitudes = torch.logspace(-30, 30, 61, 2, dtype=dtype)
    fired = foreign.spikes(torch.cat([-amplitudes.flip(0), torch.zeros(1, dtype=dtype), amplitudes])[None])[0].int()
    if fired[61]:
        raise _Refused("it fires without a current")
    if not fired.any():
        raise _Refused("it fires at no current, whatever its size")
    if (fired.diff() < 0).any():
        raise _Refused("it does not fire at all currents above the least that fires")
    least = amplitudes[int(fired[62:].argmax())].item()
    return _bisected(foreign, torch.zeros(0, 1, dtype=dtype), 2 * least)[1].item()


def _bisected(foreign: _Foreign, before: Tensor, reach: float) -> tuple[Tensor, Tensor]:
    """The last current, [M] each, at which lanes with currents ``before`` [T, M] do not fire, and the one next to it at
    which they do: within ``reach`` of 0; NaN where that holds none."""
    low, high = (torch.full(before.shape[1:], bound, dtype=before.dtype) for bound in (-reach, reach))

    def fires(last: Tensor) -> Tensor:
        return foreign.spikes(torch.cat([before, last[None]]))[-1]

    lost = fires(low) | ~fires(high)
    for _ in range(32 if before.dtype == torch.float32 else 64):
        middle = low + (high - low) / 2
        if ((middle == low) | (middle == high)).all():
            break
        fired = fires(middle)
        low, high = torch.where(fired, low, middle), torch.where(fired, middle, high)
    low[lost] = high[lost] = math.nan
    return low, high


_LAGS = (1, 2, 3, 5)
_BELOW = (-8.0, -1.3, 0.5, 0.9375)
"""The first two make no spike, whatever the leak."""
_ABOVE = (1.37, 1.9, 3.3, 7.1)


def _experiments() -> dict[str, list[list[float]]]:
    """Currents in units of the level, before the one that is bisected; each experiment needs those before it."""
    impulses = [[a, *[0.0] * (lag - 1)] for lag in _LAGS for a in _BELOW]
    sums = [[0.4, 0.3], [-2.0, 0.5, 0.3], [0.6, -0.7, 0.1, 0.2], [-0.2, -0.2, -0.2, -0.2, -0.2]]
    return {
        "impulse": impulses,
        "sum": sums,
        "spike": [[a] for a in _ABOVE],
        "later": [[a, *[0.0] * lag] for lag in (1, 2, 4) for a in _ABOVE[:2]],
        "again": [[1.6, 1.7], [1.4, 2.0, 1.8], [1.9, 0.0, 1.5], [1.3, -0.4, 2.2, 0.2], [1.8, 1.8, 1.8, 1.8]],
    }


def _equation(foreign: _Foreign, dtype: torch.dtype) -> _Equation:
    """Find level, leak and reset, or what they are not."""
    level = _level(foreign, dtype)
    within = 1e-9 if dtype == torch.float64 else 3e-5
    experiments = _experiments()
    lanes = [lane for made in experiments.values() for lane in made]
    longest = max(map(len, lanes))
    # rounded to float32, so that code which computes in that gets the same
    padded = [[0.0] * (longest - len(lane)) + lane for lane in lanes]
    before = (torch.tensor(padded, dtype=torch.float32).T * level).to(dtype)
    high = _bisected(foreign, before, 64 * level)[1].double()
    before, found = before.double(), {}
    sizes = [len(made) for made in experiments.values()]
    for name, x, least in zip(experiments, before.split(sizes, 1), high.split(sizes), strict=True):
        found[name] = x, least
    if found["impulse"][1].isnan().any():
        raise _Refused("no current fires it in the step after one below the threshold")
    x, least = found["impulse"]
    kept = ((level - least) / x.sum(0)).view(len(_LAGS), len(_BELOW))
    decay = kept[0].mean().item()
    if (kept[:, 0] - kept[:, 1]).abs().max() > within:
        raise _Refused("its leak is not in proportion to its potential")
    if (kept[:, 0] - kept[0, 0] ** torch.tensor(_LAGS, dtype=torch.float64)).abs().max() > within:
        raise _Refused("its response to an impulse is not one exponential: its spikes depend on two states")
    if (kept - kept[:, :1]).abs().max() > within:
        raise _Refused("its leak is not in proportion to its potential")
    if not -within <= decay <= 1 + within:
        raise _Refused(f"its potential is multiplied by {decay:.6g} per step")
    decay = min(1.0, max(0.0, decay))
    is_hard, reset = True, 0.0
    if decay > 1e-6:  # else nothing is left of what a reset does
        is_hard, reset = _reset(*found["spike"], level, decay, within)
    equation = _Equation(level, decay, is_hard, reset, within)
    refusals = {
        "sum": "its response to two currents is not the sum of those to each",
        "spike": "the current that it fires at after a spike is not what its leak and its reset say",
        "later": "after a spike, more changes than its potential: its spikes depend on two states",
        "again": "what a spike does depends on the spikes before it: its spikes depend on two states",
    }
    for name, reason in refusals.items():
        x, least = found[name]
        off = (equation.boundary(x) - least).abs() / level
        if not (off <= 16 * within).all():
            raise _Refused(reason)
    return equation


def _reset(x: Tensor, least: Tensor, level: float, decay: float, within: float) -> tuple[bool, float]:
    """Whether a reset is hard, and to or by what: from the least current of the step after the spikes at x [1, M]."""
    if least.isnan().any():
        raise _Refused("no current fires it in the step after a spike: it is refractory")
    after = (level - least) / decay
    for is_hard, number in ((True, after), (False, x[-1] - after)):
        if number.max() - number.min() <= 16 * within * level / decay:
            return is_hard, number[0].item()  # of the lowest potential, which rounds least
    raise _Refused("after a spike its potential is neither a constant nor the potential less a constant")


def _computes_in(foreign: _Foreign) -> torch.dtype:
    """What it computes in when it is given float64: whether the last bits of an earlier current count."""
    try:
        level = _level(foreign, torch.float64)
        before = torch.tensor([[0.875 * level]]).double()
        high = _bisected(foreign, before, 64 * level)[1]
        less = foreign.spikes(torch.cat([before * (1 - 1e-10), high[None]]))[-1]
    except _Refused:
        return torch.float32
    is_remembered = not high.isnan().any() and abs(high.item() - level) > 1e-3 * level
    return torch.float32 if is_remembered and less.item() else torch.float64


# ---- candidates


class _Candidate(NamedTuple):
    """Arguments of ours but for the surrogate and what has to do with gradients.

    Attributes:
        leak: "tau", "rate", "decay", or "" of a neuron without one.
        factor: of the input.
        missed: bisected currents at which it fires otherwise, in float32 and, where that runs, float64.
    """

    arguments: dict[str, Any]
    leak: str
    factor: float
    missed: tuple[int, ...] = ()

    def with_arguments(self, arguments: dict[str, Any]) -> _Candidate:
        return self._replace(arguments=arguments)

    @property
    def rest(self) -> float:
        rest = self.arguments["v_rest"]
        return (self.arguments["v_reset"] or 0.0) if rest is None else rest

    def run(self, x: Tensor, **more: Any) -> Any:
        """Ours, as it is defined: any backend gives the same bits."""
        with warnings.catch_warnings():  # of surrogates whose names had another meaning once
            warnings.simplefilter("ignore", UserWarning)
            return F.neuron(x, **(self.arguments | more), return_v=False, backend="reference")


def _candidates(equation: _Equation) -> list[_Candidate]:
    """All ways to write an equation, the usual one first."""
    exact = equation.within < 1e-6
    close = (2e-14 if exact else 1e-7, 8e-15 if exact else 1.3e-7)
    return [
        _Candidate(
            {"neuron": "lif" if leak else "if", **own, **_potentials(equation, factor, rest, near), "fire": fire},
            leak,
            factor,
        )
        for leak, own, factor in _leaks(equation.decay, close[0])
        for near in [close[1] + (close[0] / factor if factor != 1 else 0.0)]
        for rest in _rests(equation, factor, near)
        for fire in (">=", ">")
    ]


def _leaks(decay: float, close: float) -> Iterator[tuple[str, dict[str, Any], float]]:
    """Name of the leak, its arguments, and the factor of the input."""
    if decay >= 1 - 4 * close:
        yield "", {}, 1.0
        return
    decay = _round(decay, close)
    rate = _round(1 - decay, close)
    tau = _round(1 / (1 - decay), 2 * close / (1 - decay) ** 2)
    if tau > 1:
        yield "tau", {"tau": tau, "decay_input": False}, 1.0
        yield "tau", {"tau": tau, "decay_input": True}, 1 / tau
    yield "decay", {"decay": decay, "decay_input": False}, 1.0
    yield "rate", {"rate": rate, "decay_input": False}, 1.0
    yield "rate", {"rate": rate, "decay_input": True}, rate


def _rests(equation: _Equation, factor: float, close: float) -> list[float]:
    """Resting potentials that a constant can be taken off the others for: 0; what makes the reset 0, or the threshold
    1. No spike tells them apart but by rounding."""
    level = equation.level * factor
    reset = equation.reset * factor if equation.is_hard else 0.0
    return list(dict.fromkeys(_round(rest, close * level) for rest in (0.0, -reset, 1 - level)))


def _potentials(equation: _Equation, factor: float, rest: float, close: float) -> dict[str, Any]:
    level = equation.level * factor
    threshold = _round(level + rest, 2 * close * (abs(level) + abs(rest)))
    changed = equation.reset * factor
    # the error of a reset is seen through the leak
    close = 8 * close * (abs(level) + abs(rest) + abs(changed)) / max(equation.decay, 1e-3)
    if equation.is_hard:
        reset = _round(changed + rest, close)
        return {
            "v_threshold": threshold,
            "v_reset": reset,
            "v_subtract": None,
            "v_rest": None if rest == reset else rest,
        }
    # one that is subtracted after the leak: snnTorch's, a step late
    late = threshold / equation.decay if equation.decay else math.inf
    by = late if abs(late - changed) <= close and not abs(threshold - changed) <= close else _round(changed, close)
    return {
        "v_threshold": threshold,
        "v_reset": None,
        "v_subtract": None if by == threshold else by,
        "v_rest": rest or None,
    }


class _Boundaries:
    """Currents [T, 2 M] of one dtype that end just below and just at what fires, half of them multiples of an eighth of
    the level, and the foreign spikes."""

    def __init__(self, foreign: _Foreign, level: float, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(5)
        before = torch.randn(5, 96 if foreign.is_wide else 30, generator=generator, dtype=torch.float64) * 0.7 + 0.25
        before[:, ::2] = (before[:, ::2] * 8).round() / 8
        before[:, -4:] = 0  # the threshold itself
        before = (before * level).to(dtype)
        low, high = _bisected(foreign, before, 64 * level)
        known = ~low.isnan()
        self.x = torch.cat([torch.cat([before, last[None]])[:, known] for last in (low, high)], 1)
        self.spikes = foreign.spikes(self.x)

    def missed(self, candidate: _Candidate) -> int:
        """Lanes that fire otherwise."""
        return int((candidate.run(self.x).spikes.bool() != self.spikes).any(0).sum())


def _nearest(candidates: list[_Candidate], sets: list[_Boundaries]) -> list[_Candidate]:
    """Those that miss nothing in float32, the best of them in float64; where each misses some, because it rounds
    elsewhere, all that miss about as few."""
    counted = [candidate._replace(missed=tuple(s.missed(candidate) for s in sets)) for candidate in candidates]
    least = min(candidate.missed for candidate in counted)
    if least[0]:
        return [candidate for candidate in counted if candidate.missed[0] <= 2 * least[0] + 8]
    return [candidate for candidate in counted if candidate.missed == least]


def _refined(candidate: _Candidate, boundaries: _Boundaries) -> _Candidate:
    """Where float32 is all that there is: the same, with numbers a few bits away that fit better."""
    fields = ("v_threshold", "tau", "rate", "decay", "v_reset", "v_subtract")
    for field in fields * 3:
        number = candidate.arguments.get(field)
        if not number or not boundaries.missed(candidate):
            continue
        ulp = torch.finfo(torch.float32).eps * 2.0 ** (math.frexp(number)[1] - 1)
        start = torch.tensor(number, dtype=torch.float32).item()
        tried = ({**candidate.arguments, field: start + k * ulp} for k in range(-8, 9))
        candidate = min([candidate, *map(candidate.with_arguments, tried)], key=boundaries.missed)
    least = boundaries.missed(candidate)
    for field in fields:
        for number in _rounder(candidate.arguments.get(field) or 0.0, 1e-6, 6):
            rounder = candidate.with_arguments({**candidate.arguments, field: number})
            if boundaries.missed(rounder) <= least:
                candidate = rounder
                break
    return candidate


# ---- the test


def _slopes(foreign: _Foreign, candidate: _Candidate) -> _Sample:
    """The foreign surrogate, from the gradient of one step, in units of this candidate's potential."""
    threshold = candidate.arguments["v_threshold"]

    def sample(u: Tensor) -> tuple[Tensor, Tensor]:
        x = ((u + threshold - candidate.rest) / candidate.factor).to(foreign.dtype)[None]
        grad = foreign.gradient(x, torch.ones_like(x))[1]
        u = (candidate.run(x, return_h_seq=True).h_seq[0] - threshold).double()
        # that both are on the same side of 0 is known of potentials that are the same bits
        known = u.abs() > 16 * torch.finfo(x.dtype).eps * abs(threshold) if candidate.missed[-1] else u.isfinite()
        return u[known], grad[0].double()[known] / candidate.factor

    return sample


def _with_surrogate(foreign: _Foreign, nearest: list[_Candidate], names: Iterable[str]) -> tuple[_Candidate, float]:
    """Of candidates that fit alike, the one whose surrogate and threshold look most like what someone would write; its
    surrogate's residual."""
    fits: dict[float, SurrogateFit] = {}
    for candidate in nearest:
        if candidate.factor not in fits:
            fits[candidate.factor] = _fitted(_slopes(foreign, candidate), names, foreign.dtype == torch.float32)
    if all(fit.surrogate is None for fit in fits.values()):
        best = min(fits.values(), key=lambda fit: fit.residual)
        raise _Refused(best.reason, best.residual)

    def oddity(candidate: _Candidate) -> tuple[Any, ...]:
        surrogate, threshold = fits[candidate.factor].surrogate, candidate.arguments["v_threshold"]
        if surrogate is None:
            return (True,)
        leak = candidate.arguments.get(candidate.leak, 0.0)
        return (
            False,
            threshold != 1,
            surrogate.scale != 1,
            candidate.rest != 0,
            sum(candidate.missed),
            len(repr(threshold)),
            candidate.leak != "tau" or math.frexp(leak)[0] != 0.5,
            len(repr(leak)),
            candidate.arguments["fire"] == ">",
        )

    chosen = min(nearest, key=oddity)
    fit = fits[chosen.factor]
    return chosen.with_arguments({**chosen.arguments, "surrogate": fit.surrogate}), fit.residual


def _currents(level: float, lanes: int, dtype: torch.dtype) -> list[Tensor]:
    """Random currents [T, lanes] of three scales, and, last, multiples of a quarter of the level."""
    generator = torch.Generator().manual_seed(6)
    kinds = ((16, 0.4, 0.2), (32, 1.0, 0.3), (64, 3.0, 0.0))
    z = [torch.randn(steps, lanes, generator=generator, dtype=torch.float64) * s + mean for steps, s, mean in kinds]
    z.append(torch.randint(-2, 6, (32, lanes), generator=generator).double() / 4)
    return [(x * level).to(dtype) for x in z]


class _Outcome(NamedTuple):
    """How a candidate did on currents of one dtype: spikes that differ, whether roundings alone may be why, and the
    largest difference of gradients, of random currents and of the grid, as a share of the largest."""

    differing: int
    by_rounding: bool
    random: float
    grid: float


def _outcome(foreign: _Foreign, candidate: _Candidate, level: float, dtype: torch.dtype) -> _Outcome:
    generator = torch.Generator().manual_seed(7)
    differing, by_rounding, off = 0, True, []
    within = 1e-5 if dtype == torch.float32 else 1e-10
    for x in _currents(level, 48 if foreign.is_wide else 12, dtype):
        weights = torch.randn(x.shape, generator=generator, dtype=torch.float32).to(dtype)
        theirs, wanted = foreign.gradient(x, weights)
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            out = candidate.run(leaf, return_h_seq=True)
            (grad,) = torch.autograd.grad(out.spikes, leaf, weights)
        wrong = out.spikes.bool() != theirs
        lanes = wrong.any(0)
        if lanes.any():
            differing += int(wrong.sum())
            first = wrong.int().argmax(0)[lanes]
            h = out.h_seq.detach()[:, lanes].gather(0, first[None])
            near = (h - candidate.arguments["v_threshold"]).abs() <= within * level * candidate.factor
            by_rounding = by_rounding and bool(near.all())
        compared = ~lanes & wanted.isfinite().all(0)  # an exponential that is too large counts for nothing
        off.append(_share(wanted[:, compared], grad[:, compared]))
    random = [share for share in off[:-1] if share is not None]
    return _Outcome(differing, by_rounding, max(random, default=math.inf), off[-1] or 0.0)


def _share(truth: Tensor, other: Tensor) -> float | None:
    """Largest difference, as a share of the largest value; None where nothing is to be compared."""
    if not truth.numel():
        return None
    difference, largest = (truth - other).abs().max().item(), truth.abs().max().item()
    return difference / largest if largest else difference


def _judged(foreign: _Foreign, candidate: _Candidate, level: float) -> tuple[_Candidate, _Outcome, bool]:
    """Whether the gradient sees the reset; how the candidate does in float32; whether it is exact."""
    tried = []
    for detached in (False, True):
        made = candidate.with_arguments({**candidate.arguments, "detach_reset": detached})
        tried.append((made, _outcome(foreign, made, level, foreign.dtype)))
    made, outcome = min(tried, key=lambda pair: pair[1].random)
    single = outcome if foreign.dtype == torch.float32 else _outcome(foreign, made, level, torch.float32)
    for one in (outcome, single):
        if one.differing and not one.by_rounding:
            reason = f"{one.differing} spikes differ from those of the nearest of ours"
            raise _Refused(reason, differing=one.differing)
    if not outcome.random <= GRADIENT[torch.float32 if foreign.has_single else foreign.dtype]:
        known = "back-propagation through time" if outcome.random > 1e-3 else "the nearest of ours"
        raise _Refused(
            f"its gradient is not that of {known}: off by {outcome.random:.2g} of the largest", outcome.random
        )
    exact = single.differing == 0 and max(single.random, single.grid) <= GRADIENT[torch.float32]
    return made, single, exact


def probe_neuron(
    run: Callable[[Tensor], Tensor],
    shape: Sequence[int] = (2, 3),
    *,
    names: Iterable[str] = tuple(TABLE),
    device: torch.device | str = "cpu",
) -> NeuronFit:
    """Which neuron of ours a foreign one is. Takes a few hundred short runs; the caller's random state and modes stay.

    Args:
        run: currents [T, *shape] -> spikes [T, *shape] of 0 and 1, differentiable, from a fresh state at each call;
            float32, and float64 where it can. :func:`in_loop` makes one of code for one step.
        shape: of one step. Where other sizes of its first dimension work as well, they are made use of.
        names: rows of ``sca_kernels.surrogates.TABLE`` to try.
        device: where ``run`` wants its currents.
    """
    if not shape or not all(size > 0 for size in shape):
        raise ValueError(f"shape: expected one dimension or more, none of them empty, got {tuple(shape)}")
    foreign = _Foreign(run, shape, device)
    with _own_modes(foreign.device):
        try:
            return _probed(foreign, tuple(names))
        except _Refused as refused:
            return NeuronFit(None, refused.differing, refused.residual, reason=str(refused))


def _probed(foreign: _Foreign, names: Sequence[str]) -> NeuronFit:
    _check_is_one_neuron(foreign)
    _check_gradient_is_one(foreign)
    foreign.widen()
    foreign.dtype = _computes_in(foreign)
    equation = _equation(foreign, foreign.dtype)
    _check_is_one_neuron(foreign, equation.level)  # which may be one that no current has reached yet
    dtypes = [torch.float32] if foreign.dtype == torch.float32 else [torch.float32, torch.float64]
    sets = [_Boundaries(foreign, equation.level, dtype) for dtype in dtypes]
    candidates = _candidates(equation)
    if foreign.dtype == torch.float32:
        candidates = [_refined(candidate, sets[0]) for candidate in sorted(candidates, key=sets[0].missed)[:8]]
    nearest = _nearest(candidates, sets)
    chosen, residual = _with_surrogate(foreign, nearest, names)
    foreign.has_single |= residual > GRADIENT[torch.float64]
    made, outcome, exact = _judged(foreign, chosen, equation.level)
    tied = (candidate.leak for candidate in nearest if candidate.missed == chosen.missed)
    alike = dict.fromkeys(leak for leak in tied if leak not in ("", chosen.leak))
    return NeuronFit(made.arguments, outcome.differing, max(outcome.random, outcome.grid), exact, tuple(alike))
