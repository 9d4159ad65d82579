"""What the tests of training runs share: an observer, and equality of states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sca.training import Trainer


class Watch:
    """An observer that calls a function after each step, and never asks to stop."""

    stop_requested = False

    def __init__(self, on_batch: Callable[[Trainer], None] = lambda trainer: None) -> None:
        self.on_batch = on_batch

    def on_start(self, trainer: Trainer) -> None:
        pass

    def on_epoch(self, row: dict[str, Any]) -> None:
        pass


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
