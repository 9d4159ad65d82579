"""Recordings in the official formats, written event by event, and read again one event at a time: by the layouts in the
formats' own specifications, apart from the package's readers."""

from __future__ import annotations

import importlib
import struct
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from benchmarks.recordings import stand_ins

#: t in microseconds, x, y, p
Event = tuple[int, int, int, int]

AEDAT2_HEADER = b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n# Timestamps tick is 1 us\r\n"
AEDAT3_HEADER = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"


def random_events(
    count: int, sensor: tuple[int, int], seed: int = 0, last: int = 100_000, first: int = 0
) -> list[Event]:
    """Events in the order of their times, some of which are equal."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(first, last, count))
    columns = (t, rng.integers(0, sensor[1], count), rng.integers(0, sensor[0], count), rng.integers(0, 2, count))
    return list(zip(*(column.tolist() for column in columns), strict=True))


def write_atis(file: Path, events: list[Event]) -> None:
    """5 bytes an event; marks of the clock, of 2^13 microseconds each, where a time would not fit into its 23 bits."""
    with open(file, "wb") as stream:
        passed = 0
        for t, x, y, p in events:
            while t - passed >= 2**23:
                stream.write(struct.pack("5B", 0, 240, 0, 0, 0))
                passed += 2**13
            rest = t - passed
            stream.write(struct.pack("5B", x, y, p << 7 | rest >> 16, rest >> 8 & 255, rest & 255))


def read_atis(file: Path) -> list[Event]:
    found, passed, content = [], 0, file.read_bytes()
    for start in range(0, len(content), 5):
        x, y, high, middle, low = content[start : start + 5]
        if y == 240:
            passed += 2**13
            continue
        found.append(((high % 128) * 65536 + middle * 256 + low + passed, x, y, high // 128))
    return found


def write_aedat2(file: Path, events: list[Event], header: bytes = AEDAT2_HEADER) -> None:
    """Big-endian addresses and times; y counts in bits 1 to 7, x in 8 to 14, both downward; the lowest bit is OFF."""
    with open(file, "wb") as stream:
        stream.write(header)
        for t, x, y, p in events:
            stream.write(struct.pack(">II", (127 - x) * 256 + (127 - y) * 2 + (1 - p), t))


def read_aedat2(file: Path) -> list[Event]:
    content, start = file.read_bytes(), 0
    while content[start : start + 1] == b"#":
        start = content.index(b"\r\n", start) + 2
    found = []
    for place in range(start, len(content), 8):
        address, t = struct.unpack_from(">II", content, place)
        if not address & 0x8000:
            found.append((t, 127 - address // 256 % 128, 127 - address // 2 % 128, 1 - address % 2))
    return found


def write_aedat3(file: Path, events: list[Event], packet: int = 7, header: bytes = AEDAT3_HEADER) -> None:
    """Packets of so many events, with room for two more; between them others, of type 0, and in them invalid events."""
    with open(file, "wb") as stream:
        stream.write(header)
        for start in range(0, len(events), packet):
            stream.write(struct.pack("<HHIIIIII", 0, 1, 8, 4, 0, 1, 1, 1) + b"\xff" * 8)
            overflow = events[start][0] >> 31
            own = [event for event in events[start : start + packet] if event[0] >> 31 == overflow]
            others = [event for event in events[start : start + packet] if event[0] >> 31 != overflow]
            for part in filter(None, (own, others)):
                above = part[0][0] >> 31
                number = len(part) + 1
                stream.write(struct.pack("<HHIIIIII", 1, 1, 8, 4, above, number + 2, number, len(part)))
                stream.write(struct.pack("<II", 99 << 17 | 98 << 2 | 2, part[0][0] & (2**31 - 1)))  # not valid
                for t, x, y, p in part:
                    stream.write(struct.pack("<II", x << 17 | y << 2 | p << 1 | 1, t & (2**31 - 1)))
                stream.write(b"\x00" * 16)


def aedat3_packet(events: list[Event], room: int = 0, overflow: int = 0, invalid: Collection[int] = ()) -> bytes:
    """A packet of polarity events, with room for so many more; times are of 31 bits, and events of these numbers
    are marked invalid."""
    head = (1, 1, 8, 4, overflow, len(events) + room, len(events), len(events) - len(invalid))
    bodies = (
        struct.pack("<II", x << 17 | y << 2 | p << 1 | (number not in invalid), t)
        for number, (t, x, y, p) in enumerate(events)
    )
    return struct.pack("<HHIIIIII", *head) + b"".join(bodies) + b"\xff" * 8 * room


def read_aedat3(file: Path) -> list[Event]:
    content = file.read_bytes()
    place = content.index(b"#!END-HEADER\r\n") + len(b"#!END-HEADER\r\n")
    found = []
    while place < len(content):
        kind, _, size, _, overflow, capacity, number, _ = struct.unpack_from("<HHIIIIII", content, place)
        place += 28
        for event in range(number if kind == 1 else 0):
            data, t = struct.unpack_from("<II", content, place + 8 * event)
            if data % 2:
                found.append((overflow * 2**31 + t, data >> 17 & 0x7FFF, data >> 2 & 0x7FFF, data >> 1 & 1))
        place += size * capacity
    return found


def columns(events: list[Event]) -> dict[str, np.ndarray]:
    """The events as arrays."""
    return dict(zip("txyp", np.array(events, np.int64).T, strict=True))


def write_arrays(file: Path, events: list[Event]) -> None:
    """As the ending says: a structured array, several by name, HDF5's data sets in a group, MATLAB's ``out1``."""
    held = columns(events)
    if file.suffix == ".npy":
        structured = np.zeros(len(events), [("p", "i1"), ("x", "u2"), ("t", "u8"), ("y", "f4")])
        for name, values in held.items():
            structured[name] = values
        np.save(file, structured)
    elif file.suffix == ".npz":
        np.savez(file, **held)
    elif file.suffix == ".mat":
        from scipy.io import savemat

        savemat(file, {"out1": np.array(events, np.float64)})
    else:
        import h5py

        with h5py.File(file, "w") as stream:
            for name, values in held.items():
                stream[f"events/{name}"] = values


def mat_element(kind: int, content: bytes, order: str = "<") -> bytes:
    """A data element of a MATLAB file: type, length, content filled up to 8 bytes; a small one takes 8 in all."""
    if 0 < len(content) <= 4:
        small = struct.pack(f"{order}HH", *((kind, len(content)) if order == "<" else (len(content), kind)))
        return small + content.ljust(4, b"\0")
    return struct.pack(f"{order}II", kind, len(content)) + content + b"\0" * (-len(content) % 8)


def mat_matrix(
    rows: list[tuple[int, ...]], stored: str = "d", name: str = "out1", array_class: int = 6, order: str = "<"
) -> bytes:
    """An array of numbers, column by column, of a class (6: double), whose numbers are stored as ``stored``."""
    kind = {"b": 1, "B": 2, "h": 3, "H": 4, "i": 5, "I": 6, "f": 7, "d": 9, "q": 12, "Q": 13}[stored]
    width = len(rows[0]) if rows else 4
    numbers = [row[column] for column in range(width) for row in rows]
    parts = (
        mat_element(6, struct.pack(f"{order}II", array_class, 0), order),
        mat_element(5, struct.pack(f"{order}ii", len(rows), width), order),
        mat_element(1, name.encode(), order),
        mat_element(kind, struct.pack(f"{order}{len(numbers)}{stored}", *numbers), order),
    )
    return mat_element(14, b"".join(parts), order)


def write_mat(file: Path, *elements: bytes, order: str = "<") -> None:
    """A MATLAB file of level 5 with these data elements."""
    version = struct.pack(f"{order}H", 0x0100) + (b"IM" if order == "<" else b"MI")
    file.write_bytes(b"MATLAB 5.0 MAT-file, written by a test".ljust(124) + version + b"".join(elements))


def spikingjelly(module: str) -> ModuleType:
    """A module of SpikingJelly's data sets; skips the test where that is not installed."""
    pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed")
    with stand_ins():
        return importlib.import_module(f"spikingjelly.datasets.{module}")
