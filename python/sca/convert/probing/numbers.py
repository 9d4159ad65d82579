"""Numbers that people write, and modes that probing has of its own."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from fractions import Fraction

import torch

__all__ = ["rounded", "own_modes", "rounder_numbers"]

_CPU = torch.device("cpu")


@contextlib.contextmanager
def own_modes(device: torch.device = _CPU) -> Iterator[None]:
    """No gradient where none is asked for, tensors that can have one, the CPU and the caller's random state put
    back."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng([] if device.type == "cpu" else [device], device_type=device.type))
        if torch.get_default_device().type != "cpu":  # a mode that each call pays for
            stack.enter_context(_CPU)
        yield


def rounder_numbers(number: float, within: float = 1e-4, most: int = 15) -> Iterator[float]:
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


def rounded(number: float, within: float) -> float:
    """The simplest number not farther away than ``within``, an absolute error, or the number itself."""
    if abs(number) <= within:
        return 0.0
    return next(rounder_numbers(number, within / abs(number), 10), number)
