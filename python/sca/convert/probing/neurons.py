"""Which neuron of ours a foreign one is: the surrogate that belongs to it, and the test."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sca_kernels.surrogates import TABLE

from .candidates import Boundaries, Candidate, candidates_of, nearest_of, refined
from .equation import computes_in, equation_of
from .foreign import Foreign, Refused, check_gradient_is_one, check_is_one_neuron
from .numbers import own_modes
from .surrogates import Sample, SurrogateFit, fitted_surrogate

__all__ = ["NeuronFit", "probe_neuron"]

GRADIENT = {torch.float64: 1e-12, torch.float32: 1e-5}
"""Largest difference of gradients, as a share of the largest one."""


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


def _slopes(foreign: Foreign, candidate: Candidate) -> Sample:
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


def _with_surrogate(foreign: Foreign, nearest: list[Candidate], names: Iterable[str]) -> tuple[Candidate, float]:
    """Of candidates that fit alike, the one whose surrogate and threshold look most like what someone would write; its
    surrogate's residual."""
    fits: dict[float, SurrogateFit] = {}
    for candidate in nearest:
        if candidate.factor not in fits:
            fits[candidate.factor] = fitted_surrogate(
                _slopes(foreign, candidate), names, foreign.dtype == torch.float32
            )
    if all(fit.surrogate is None for fit in fits.values()):
        best = min(fits.values(), key=lambda fit: fit.residual)
        raise Refused(best.reason, best.residual)

    def oddity(candidate: Candidate) -> tuple[Any, ...]:
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


def _outcome(foreign: Foreign, candidate: Candidate, level: float, dtype: torch.dtype) -> _Outcome:
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


def _judged(foreign: Foreign, candidate: Candidate, level: float) -> tuple[Candidate, _Outcome, bool]:
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
            raise Refused(reason, differing=one.differing)
    if not outcome.random <= GRADIENT[torch.float32 if foreign.has_single else foreign.dtype]:
        known = "back-propagation through time" if outcome.random > 1e-3 else "the nearest of ours"
        raise Refused(
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
    foreign = Foreign(run, shape, device)
    with own_modes(foreign.device):
        try:
            return _probed(foreign, tuple(names))
        except Refused as refused:
            return NeuronFit(None, refused.differing, refused.residual, reason=str(refused))


def _probed(foreign: Foreign, names: Sequence[str]) -> NeuronFit:
    check_is_one_neuron(foreign)
    check_gradient_is_one(foreign)
    foreign.widen()
    foreign.dtype = computes_in(foreign)
    equation = equation_of(foreign, foreign.dtype)
    check_is_one_neuron(foreign, equation.level)  # which may be one that no current has reached yet
    dtypes = [torch.float32] if foreign.dtype == torch.float32 else [torch.float32, torch.float64]
    sets = [Boundaries(foreign, equation.level, dtype) for dtype in dtypes]
    candidates = candidates_of(equation)
    if foreign.dtype == torch.float32:
        candidates = [refined(candidate, sets[0]) for candidate in sorted(candidates, key=sets[0].missed)[:8]]
    nearest = nearest_of(candidates, sets)
    chosen, residual = _with_surrogate(foreign, nearest, names)
    foreign.has_single |= residual > GRADIENT[torch.float64]
    made, outcome, exact = _judged(foreign, chosen, equation.level)
    tied = (candidate.leak for candidate in nearest if candidate.missed == chosen.missed)
    alike = dict.fromkeys(leak for leak in tied if leak not in ("", chosen.leak))
    return NeuronFit(made.arguments, outcome.differing, max(outcome.random, outcome.grid), exact, tuple(alike))
