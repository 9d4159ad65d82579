"""How fast several pieces of work are, measured beside each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

__all__ = ["Speed", "compare_speed"]


@dataclass(frozen=True)
class Speed:
    """Samples per second over several rounds: median, 20th and 80th percentile."""

    median: float
    p20: float
    p80: float
    rounds: int

    def to_dict(self) -> dict[str, float]:
        """Plain values, for JSON."""
        return asdict(self)


def compare_speed(
    work: dict[str, Callable[[], object]], samples: int, device: str, max_rounds: int = 15, max_seconds: float = 15.0
) -> dict[str, Speed]:
    """Time several pieces of work in turn, so that whatever else the machine does meets them alike.

    Args:
        work: name -> a call that processes ``samples`` samples.
        samples: per call.
        device: waited for before each reading of the clock.
        max_rounds, max_seconds: ends after so many rounds, or when the time is up and there were at least 3.

    Returns:
        name -> speed. One untimed round goes first.
    """
    synchronise = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    rates: dict[str, list[float]] = {name: [] for name in work}
    for call in work.values():
        call()
    begin = time.perf_counter()
    for finished in range(max_rounds):
        if finished >= 3 and time.perf_counter() - begin > max_seconds:
            break
        for name, call in work.items():
            synchronise()
            start = time.perf_counter()
            call()
            synchronise()
            rates[name].append(samples / (time.perf_counter() - start))
    return {name: _speed(values) for name, values in rates.items()}


def _speed(rates: list[float]) -> Speed:
    fifths = statistics.quantiles(rates, n=5, method="inclusive")
    return Speed(statistics.median(rates), fifths[0], fifths[-1], len(rates))
