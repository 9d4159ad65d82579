"""The equation of a foreign neuron: threshold, leak and reset, by bisection."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .foreign import Foreign, Refused

__all__ = ["Equation", "bisected", "computes_in", "equation_of"]


class Equation(NamedTuple):
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


def level_of(foreign: Foreign, dtype: torch.dtype) -> float:
    """The least current that fires at once."""
    amplitudes = torch.logspace(-30, 30, 61, 2, dtype=dtype)
    fired = foreign.spikes(torch.cat([-amplitudes.flip(0), torch.zeros(1, dtype=dtype), amplitudes])[None])[0].int()
    if fired[61]:
        raise Refused("it fires without a current")
    if not fired.any():
        raise Refused("it fires at no current, whatever its size")
    if (fired.diff() < 0).any():
        raise Refused("it does not fire at all currents above the least that fires")
    least = amplitudes[int(fired[62:].argmax())].item()
    return bisected(foreign, torch.zeros(0, 1, dtype=dtype), 2 * least)[1].item()


def bisected(foreign: Foreign, before: Tensor, reach: float) -> tuple[Tensor, Tensor]:
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


def equation_of(foreign: Foreign, dtype: torch.dtype) -> Equation:
    """Find level, leak and reset, or what they are not."""
    level = level_of(foreign, dtype)
    within = 1e-9 if dtype == torch.float64 else 3e-5
    experiments = _experiments()
    lanes = [lane for made in experiments.values() for lane in made]
    longest = max(map(len, lanes))
    # rounded to float32, so that code which computes in that gets the same
    padded = [[0.0] * (longest - len(lane)) + lane for lane in lanes]
    before = (torch.tensor(padded, dtype=torch.float32).T * level).to(dtype)
    high = bisected(foreign, before, 64 * level)[1].double()
    before, found = before.double(), {}
    sizes = [len(made) for made in experiments.values()]
    for name, x, least in zip(experiments, before.split(sizes, 1), high.split(sizes), strict=True):
        found[name] = x, least
    if found["impulse"][1].isnan().any():
        raise Refused("no current fires it in the step after one below the threshold")
    x, least = found["impulse"]
    kept = ((level - least) / x.sum(0)).view(len(_LAGS), len(_BELOW))
    decay = kept[0].mean().item()
    if (kept[:, 0] - kept[:, 1]).abs().max() > within:
        raise Refused("its leak is not in proportion to its potential")
    if (kept[:, 0] - kept[0, 0] ** torch.tensor(_LAGS, dtype=torch.float64)).abs().max() > within:
        raise Refused("its response to an impulse is not one exponential: its spikes depend on two states")
    if (kept - kept[:, :1]).abs().max() > within:
        raise Refused("its leak is not in proportion to its potential")
    if not -within <= decay <= 1 + within:
        raise Refused(f"its potential is multiplied by {decay:.6g} per step")
    decay = min(1.0, max(0.0, decay))
    is_hard, reset = True, 0.0
    if decay > 1e-6:  # else nothing is left of what a reset does
        is_hard, reset = _reset(*found["spike"], level, decay, within)
    equation = Equation(level, decay, is_hard, reset, within)
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
            raise Refused(reason)
    return equation


def _reset(x: Tensor, least: Tensor, level: float, decay: float, within: float) -> tuple[bool, float]:
    """Whether a reset is hard, and to or by what: from the least current of the step after the spikes at x [1, M]."""
    if least.isnan().any():
        raise Refused("no current fires it in the step after a spike: it is refractory")
    after = (level - least) / decay
    for is_hard, number in ((True, after), (False, x[-1] - after)):
        if number.max() - number.min() <= 16 * within * level / decay:
            return is_hard, number[0].item()  # of the lowest potential, which rounds least
    raise Refused("after a spike its potential is neither a constant nor the potential less a constant")


def computes_in(foreign: Foreign) -> torch.dtype:
    """What it computes in when it is given float64: whether the last bits of an earlier current count."""
    try:
        level = level_of(foreign, torch.float64)
        before = torch.tensor([[0.875 * level]]).double()
        high = bisected(foreign, before, 64 * level)[1]
        less = foreign.spikes(torch.cat([before * (1 - 1e-10), high[None]]))[-1]
    except Refused:
        return torch.float32
    is_remembered = not high.isnan().any() and abs(high.item() - level) > 1e-3 * level
    return torch.float32 if is_remembered and less.item() else torch.float64
