"""How long passes of a network take."""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch import Tensor, nn

from .check import outputs_of
from .report import Speed
from .states import reset_states

__all__ = ["compared_speed", "seconds_of"]


def compared_speed(before: nn.Module, after: nn.Module, inputs: tuple[Any, ...], rounds: int = 7) -> Speed:
    """Both in turn, after a warm-up; medians."""
    models = [copy.deepcopy(model) for model in (before, after)]
    times: dict[tuple[int, bool], list[float]] = {}
    for i in range(rounds + 2):
        for training in (True, False):
            for which in (0, 1) if i % 2 else (1, 0):
                taken = seconds_of(models[which].train(training), inputs, training)
                if i >= 2:
                    times.setdefault((which, training), []).append(taken)
    medians = {key: float(torch.tensor(values).median()) for key, values in times.items()}
    ratios = [medians[0, training] / medians[1, training] for training in (True, False)]
    return Speed(medians[1, True] * 1e3, medians[1, False] * 1e3, *ratios)


def seconds_of(model: nn.Module, inputs: tuple[Any, ...], training: bool) -> float:
    reset_states(model)
    given = tuple(x.detach().clone() if isinstance(x, Tensor) else x for x in inputs)
    _wait(inputs)
    start = time.perf_counter()
    if training:
        sum(y.sum() for y in outputs_of(model(*given))).backward()
    else:
        with torch.no_grad():
            model(*given)
    _wait(inputs)
    return time.perf_counter() - start


def _wait(inputs: tuple[Any, ...]) -> None:
    if any(isinstance(x, Tensor) and x.is_cuda for x in inputs):
        torch.cuda.synchronize()
