"""How a figure is taken: ours and the peers in one process, in turn, after warm-up; a ratio is taken round by round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from sca_kernels import doctor

Party = Callable[[], float | None]


def clock(party: Party) -> float:
    """Milliseconds that one call takes."""
    start = time.perf_counter()
    party()
    return (time.perf_counter() - start) * 1e3


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Median with the 20th and 80th percentile."""
    if len(samples) == 1:
        return dict.fromkeys(("median", "p20", "p80"), samples[0]) | {"rounds": 1}
    cuts = statistics.quantiles(samples, n=5, method="inclusive")
    return {"median": statistics.median(samples), "p20": cuts[0], "p80": cuts[3], "rounds": len(samples)}


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """Summary of ``over / under``, round by round, so that a change of the machine's speed between rounds drops out."""
    return summary([a / b for a, b in zip(over, under, strict=True)])


def forward_backward(function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor) -> Party:
    """One training pass: ``function(*inputs)`` and the gradients of the inputs, from an upstream gradient."""

    def party() -> None:
        for tensor in inputs:
            tensor.grad = None
        function(*inputs).backward(grad)

    return party


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Relative L2 distance, in float64."""
    value, reference = value.detach().double(), reference.detach().double()
    return float((value - reference).norm() / reference.norm())


def flip_rate(spikes: Tensor, reference: Tensor) -> float:
    """Share of positions with another spike than the reference's."""
    return float((spikes != reference).double().mean())


def sampled(sample: Callable[[Party], float], party: Party) -> tuple[float, str | None]:
    """A sample of our party, and the backend whose operators ran in it; None where none did in this process (a whole
    run of a command, an import, layers that leave everything to torch).

    Raises:
        AssertionError: several did, or the reference, or a kernel failed: what stood in for our kernels is not ours.
    """
    taken: list[float] = []
    names = doctor.backends_of(lambda: taken.append(sample(party)))
    require(len(names) < 2, f"one backend runs all of ours, not {', '.join(names)}")
    require("reference" not in names, "kernels of ours run, not the reference (`sca doctor` tells why)")
    require(not doctor.failures(), f"no kernel fails: {'; '.join(doctor.failures())}")
    return taken[0], names[0] if names else None


@dataclass(frozen=True)
class Named:
    """A party of ours that must run on one backend.

    Attributes:
        run: the party.
        backend: that must run it.
        is_replayed: it replays a graph that holds this backend's kernels, so that none of our operators is called.
    """

    run: Party
    backend: str
    is_replayed: bool = False

    def __call__(self) -> float | None:
        return self.run()

    def sampled(self, sample: Callable[[Party], float]) -> tuple[float, str]:
        """A sample, and the backend.

        Raises:
            AssertionError: another backend ran, or one where a graph should have been replayed.
        """
        value, ran = sampled(sample, self.run)
        want = None if self.is_replayed else self.backend
        require(ran == want, f"{want or 'a graph, and no operator of ours,'} runs, not {ran or 'none of ours'}")
        return value, self.backend


def require(ok: bool, claim: str) -> None:
    """Refuse to time something that computes something else.

    Raises:
        AssertionError: the claim does not hold.
    """
    if not ok:
        raise AssertionError(f"not timed, since this does not hold: {claim}")
