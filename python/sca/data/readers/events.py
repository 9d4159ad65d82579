"""What a recording is, and what every reader checks of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Events", "checked", "columns", "of_columns", "only", "records"]

# Numbers of a clock of 32 bits fall by more than this where it begins anew, and by less where events are out of order.
_WRAP = 2**31
# float64 tells whole numbers apart up to here; of microseconds, three centuries.
_LARGEST = 2**53


class Events(NamedTuple):
    """Events in the order of their times, arrays of integers ``[N]``.

    Attributes:
        t: microseconds.
        x, y: column and row.
        p: 1 where it became brighter (ON), 0 where darker (OFF).
    """

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray

    def between(self, start: int, end: int) -> Events:
        """Those of the times ``start <= t < end``, in microseconds."""
        first, last = np.searchsorted(self.t, (start, end))
        return Events(*(values[first:last] for values in self))


def records(file: Path, content: bytes | memoryview, size: int, start: int = 0) -> np.ndarray:
    """The bytes of a file from ``start`` on as uint8 ``[records, size]``.

    Raises:
        ValueError: there is not a whole number of records.
    """
    raw = np.frombuffer(content, np.uint8, offset=start)
    if raw.size % size:
        raise ValueError(
            f"{file}: expected records of {size} bytes, the last one, at byte {start + raw.size // size * size:,}, has "
            f"{raw.size % size}: truncated, or another format"
        )
    return raw.reshape(-1, size)


def columns(raw: np.ndarray, kind: str) -> Iterator[np.ndarray]:
    """Records of M numbers of 32 bits, uint8 ``[N, 4 M]``, as M arrays of their own, uint32 ``[N]``.

    Args:
        kind: their type with its order of bytes.
    """
    return (values.astype(np.uint32) for values in raw.view(kind).T)


def only(mask: np.ndarray, *arrays: np.ndarray) -> tuple[Any, ...]:
    """The arrays where the mask is true, mostly everywhere; and before them a function from the number of an element to
    that which it had."""
    if mask.all():
        return int, *arrays
    kept = np.flatnonzero(mask)
    return lambda number: int(kept[number]), *(values[kept] for values in arrays)


def of_columns(
    columns: Mapping[str, np.ndarray], file: Path, sensor: tuple[int, int], unsorted: str, item: str
) -> Events:
    """The events of arrays t, x, y and p, which may be of any type that holds whole numbers; OFF is 0 or -1.

    Args:
        columns: at least these.
        file, sensor, unsorted: as for :func:`checked`.
        item: what errors call an event.

    Raises:
        ValueError: they are of other types or lengths, no whole numbers or no polarities; or as for :func:`checked`.
    """
    values = {name: np.asarray(columns[name]) for name in Events._fields}
    shapes = {value.shape for value in values.values()}
    if len(shapes) > 1 or len(min(shapes)) != 1 or any(value.dtype.kind not in "buif" for value in values.values()):
        found = ", ".join(f"{name} {value.dtype} {list(value.shape)}" for name, value in values.items())
        raise ValueError(f"{file}: expected numbers t, x, y, p of one length each, got {found}")
    for name, value in values.items():
        whole = (value > -_LARGEST) & (value < _LARGEST)
        if value.dtype.kind == "f":
            whole &= value == np.trunc(value)
        if not whole.all():
            first = int((~whole).argmax())
            advice = "; times are microseconds" if name == "t" else ""
            raise ValueError(f"{file}, {item} {first:,}: expected whole numbers {name}, got {value[first]}{advice}")
    t, x, y, p = (value.astype(np.int64) for value in values.values())
    wrong = (p != 1) & (p != (-1 if (p == -1).any() else 0))
    if wrong.any():
        first = int(wrong.argmax())
        raise ValueError(f"{file}, {item} {first:,}: expected polarities 0 and 1, or -1 and 1, got {p[first]}")
    events = Events(t, x, y, (p == 1).astype(np.int64))
    return checked(events, file, sensor, unsorted, lambda number: f"{item} {number:,}")


def checked(events: Events, file: Path, sensor: tuple[int, int], unsorted: str, place: Callable[[int], str]) -> Events:
    """The events, which a sensor of that height and width may have seen, one after the other.

    Args:
        file: which errors name.
        unsorted: ``refuse`` or ``sort`` what runs backwards.
        place: where in the file the i-th event stands.

    Raises:
        ValueError: there are no events, one lies beyond the sensor, or times run backwards.
    """
    if not len(events.t):
        raise ValueError(f"{file}: expected events, got none")
    height, width = sensor
    for name, values, side in (("x", events.x, width), ("y", events.y, height)):
        if values.max() >= side or (values.dtype.kind != "u" and values.min() < 0):
            first = int(((values < 0) | (values >= side)).argmax())
            raise ValueError(
                f"{file}, {place(first)}: expected {name} from 0 to {side - 1}, the sensor's, got {values[first]}"
            )
    late = events.t[1:] < events.t[:-1]
    if not late.any():
        return events
    t = events.t.astype(np.int64)
    falls = t[:-1] - t[1:]
    wraps = falls.max() > _WRAP
    if unsorted == "sort" and not wraps:
        order = t.argsort(kind="stable")
        return Events(*(values[order] for values in events))
    first = int(falls.argmax() if wraps else late.argmax())
    told = f"{t[first]:,} µs, then {t[first + 1]:,} µs"
    if wraps:
        raise ValueError(f"{file}, {place(first + 1)}: its clock begins anew: {told}; split the recording there")
    raise ValueError(
        f"{file}, {place(first + 1)}: times run backwards: {told}; a damaged recording, unless its events are merely "
        "out of order (then: --unsorted sort)"
    )
