"""N-MNIST and N-Caltech101: 5 bytes an event, as the ATIS camera's software wrote them (Orchard et al., "Converting
static image datasets to spiking neuromorphic datasets using saccades", 2015)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from .events import Events, checked, only, records

_EVENT = np.dtype([("x", "u1"), ("rest", ">u4")])  # y, and the 24 bits
# A record of this y is no event: it says that the clock has passed 2^13, which all later times lack.
_OVERFLOW, _CLOCK = 240, 2**13


def read(file: Path, content: bytes, sensor: tuple[int, int], unsorted: str) -> Events:
    """A ``.bin`` file: x, y, then 24 bits, the highest byte first, of which the highest bit is the polarity (1 = ON)
    and the others are the time in microseconds.

    Args, Raises: as for :func:`sca.data.readers.read`.
    """
    held = records(file, content, _EVENT.itemsize).view(_EVENT).ravel()
    x, rest = held["x"], held["rest"].astype(np.uint32)
    y, p, t = rest >> 24, rest >> 23 & 1, rest & 0x7FFFFF
    kept: Callable[[int], int] = int
    if sensor[0] <= _OVERFLOW and (overflow := y == _OVERFLOW).any():
        kept, t, x, y, p = only(~overflow, t + _CLOCK * overflow.cumsum(), x, y, p)
    return checked(
        Events(t, x, y, p), file, sensor, unsorted, lambda number: f"byte {_EVENT.itemsize * kept(number):,}"
    )
