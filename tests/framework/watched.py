"""What the tests of training runs share: a run of seconds, an observer, and equality of states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sca import training
from sca.training import TrainConfig, Trainer

#: Fields of a run of 16 steps.
TINY = {
    "data": "digits",
    "model": "vgg5",
    "width": 0.125,
    "time_steps": 2,
    "epochs": 4,
    "batch_size": 32,
    "limit_train": 128,
    "limit_test": 64,
    "density": 0.5,
    "min_channels": 2,
    "reference": None,
}


def tiny(**changes: Any) -> TrainConfig:
    """The configuration of a run of seconds."""
    return TrainConfig.from_preset(**{**TINY, **changes})


def trainer_of(config: TrainConfig) -> Trainer:
    """The trainer of a configuration, on its data."""
    return Trainer.from_config(config, training.load_data(config))


class Watch:
    """An observer, no callback: it remembers rows, calls a function after each step, and may ask to stop after one."""

    def __init__(
        self, on_batch: Callable[[Trainer], None] = lambda trainer: None, stop_after: int | None = None
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self.stop_requested = False
        self._on_batch, self._stop_after = on_batch, stop_after

    def on_start(self, trainer: Trainer) -> None:
        pass

    def on_batch(self, trainer: Trainer) -> None:
        self.stop_requested = trainer.step == self._stop_after
        self._on_batch(trainer)

    def on_epoch(self, row: dict[str, Any]) -> None:
        self.rows.append(row)


def assert_equal_state(a: Any, b: Any, path: str = "state") -> None:
    """Equal bit for bit, times of day and speeds aside."""
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, path
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a.keys() - {"seconds", "samples_per_second"}:
            assert_equal_state(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for position, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal_state(x, y, f"{path}/{position}")
    else:
        assert a == b, path
