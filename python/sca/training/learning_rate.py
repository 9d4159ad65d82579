"""Learning-rate schedules: pure functions of the epoch, a fraction within it, to a factor on the peak."""

from __future__ import annotations

import math
from collections.abc import Callable

from .config import TrainConfig

__all__ = ["cosine", "learning_rate", "schedule_of", "steps"]

Schedule = Callable[[float], float]


def cosine(epochs: int, warmup: float = 0.0) -> Schedule:
    """Linear warm-up over so many epochs, then half a cosine wave to 0 (Loshchilov & Hutter, "SGDR", ICLR 2017)."""

    def factor(epoch: float) -> float:
        progress = (epoch - warmup) / max(1e-9, epochs - warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return _warmed_up(factor, warmup)


def steps(every: float, warmup: float = 0.0) -> Schedule:
    """Linear warm-up over so many epochs; divided by 10 after every ``every`` epochs of the run."""
    # 0.1 ** 400 is 0
    return _warmed_up(lambda epoch: 0.1 ** math.floor(min(400.0, epoch / every)), warmup)


def _warmed_up(schedule: Schedule, warmup: float) -> Schedule:
    # its first step is a thousandth of an epoch into it: at 0 nothing would be learned
    return lambda epoch: min(1.0, (epoch + 1e-3) / warmup) if epoch < warmup else schedule(epoch)


def schedule_of(config: TrainConfig) -> Schedule:
    """The one that a configuration names."""
    if config.lr_schedule == "step":
        return steps(config.lr_step, config.warmup)
    return cosine(config.epochs, config.warmup)


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """Learning rate at a (fractional) epoch of a run."""
    return config.lr * schedule_of(config)(epoch)
