"""N-MNIST and N-Caltech101: 5 bytes an event, as the ATIS camera's software wrote them (Orchard et al., "Converting
static image datasets to spiking neuromorphic datasets using saccades", 2015)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .events import Events, checked, records

# A record of this y is no event: it says that the clock has passed 2^13, which all later times lack.
_OVERFLOW, _CLOCK = 240, 2**13


def read(file: Path, content: bytes, sensor: tuple[int, int], unsorted: str) -> Events:
    """A ``.bin`` file: x, y, then 24 bits, the highest byte first, of which the highest bit is the polarity (1 = ON)
    and the others are the time in microseconds.

    Args, Raises: as for :func:`sca.data.readers.read`.
    """
    x, y, high, middle, low = records(file, content, 5).T
    t = (high & 0x7F).astype(np.int64)
    for byte in middle, low:
        t <<= 8
        t |= byte
    p = high >> 7
    overflow = y == _OVERFLOW
    kept = None
    if sensor[0] <= _OVERFLOW and overflow.any():
        kept = np.flatnonzero(~overflow)
        t += _CLOCK * overflow.cumsum()
        t, x, y, p = (values[kept] for values in (t, x, y, p))

    def place(number: int) -> str:
        return f"byte {5 * int(number if kept is None else kept[number]):,}"

    return checked(Events(t, x, y, p), file, sensor, unsorted, place)
