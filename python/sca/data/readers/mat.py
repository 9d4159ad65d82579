"""DVS-CIFAR10's recordings as MATLAB files, which some mirrors hold: level 5 (MathWorks, "MAT-File Format").

Read here, since a single wrong byte can end the process in SciPy's reader, and nothing but one array is wanted.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .events import Events, of_columns

_NAME = "out1"
_HEADER, _HDF5 = 128, b"\x89HDF"
_MATRIX, _COMPRESSED = 14, 15
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
# The classes of arrays of numbers that are not sparse; a bit of the flags says that they are complex.
_CLASSES, _COMPLEX = range(6, 16), 0x800
# No recording has so many bytes, however well they were compressed.
_MOST = 2**31


def read(file: Path, content: bytes, sensor: tuple[int, int], unsorted: str) -> Events:
    """A ``.mat`` file with the array ``out1`` ``[N, 4]``, columns t in microseconds, x, y, p.

    Args, Raises: as for :func:`sca.data.readers.read`.
    """
    expected = f"{file}: expected an array {_NAME} of numbers [N, {len(Events._fields)}] (t, x, y, p)"
    if _HDF5 in (content[:4], content[512:516]):  # behind MATLAB's own text
        raise ValueError(f"{expected} in a MATLAB file of level 5, got one of version 7.3: save it with -v7")
    try:
        order = {b"IM": "<", b"MI": ">"}[content[126:_HEADER]]
        arrays = (_array(part, order) for part in _matrices(content[_HEADER:], order))
        values = next((array for array in arrays if array is not None), None)
    except (KeyError, ValueError, struct.error, zlib.error) as error:
        raise ValueError(f"{expected} in a MATLAB file, got a damaged or another one ({error})") from error
    if values is None or values.ndim != 2 or values.shape[1] != len(Events._fields):
        raise ValueError(f"{expected}, got {'none' if values is None else list(values.shape)}")
    return of_columns(dict(zip(Events._fields, values.T, strict=True)), file, sensor, unsorted, "row")


def _elements(content: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and content of one data element after the other; small ones have both numbers in one of 32 bits."""
    place = 0
    while place < len(content):
        (kind,) = struct.unpack_from(f"{order}I", content, place)
        start, length = place + 4, kind >> 16
        if not length:
            (length,) = struct.unpack_from(f"{order}I", content, start)
            start += 4
        if start + length > len(content) or (kind >> 16 and length > 4):
            raise ValueError(f"an element at byte {place:,} goes beyond its end")
        yield kind & 0xFFFF, content[start : start + length]
        padded = length if kind == _COMPRESSED else length + -length % 8
        place = place + 8 if kind >> 16 else start + padded


def _matrices(content: bytes, order: str) -> Iterator[bytes]:
    """The arrays of a file."""
    for kind, part in _elements(content, order):
        held = [(kind, part)]
        if kind == _COMPRESSED:
            held = _elements(zlib.decompressobj().decompress(part, _MOST), order)
        yield from (inner for kind, inner in held if kind == _MATRIX)


def _array(content: bytes, order: str) -> np.ndarray | None:
    """The array, if it is of real numbers and of that name."""
    parts = list(_elements(content, order))
    (_, flags), (_, sizes), (_, name), *numbers = parts
    (told,) = struct.unpack_from(f"{order}I", flags)
    if name.decode("latin-1") != _NAME or told & 0xFF not in _CLASSES or told & _COMPLEX:
        return None
    (kind, values), *_ = numbers
    shape = np.frombuffer(sizes, f"{order}i4")
    return np.frombuffer(values, order + _NUMBERS[kind]).reshape(shape[::-1]).T
