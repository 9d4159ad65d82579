"""Recordings of event cameras, file by file: events as arrays, read whole and checked, whatever the format.

``read(file, sensor)`` tells the format by the file itself: the ending, and of ``.aedat`` the first line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...files import read_whole
from . import aedat, arrays, atis, mat
from .events import Events

__all__ = ["FORMATS", "MOST_BYTES", "Events", "content_of", "read"]

#: A larger file is refused: its events would take several times as much memory.
MOST_BYTES = 2**31

#: Ending -> function of a file's name and content, of the sensor's height and width, and of ``unsorted``.
FORMATS: dict[str, Callable[..., Events]] = {
    ".bin": atis.read,
    ".aedat": aedat.read,
    ".mat": mat.read,
    **dict.fromkeys((".npy", ".npz", ".h5", ".hdf5"), arrays.read),
}


def content_of(file: Path) -> bytes:
    """All bytes of a recording.

    Raises:
        OSError: it can't be read, or has more than ``MOST_BYTES``.
    """
    return read_whole(file, MOST_BYTES)


def read(
    file: Path, sensor: tuple[int, int], unsorted: str = "refuse", content: bytes | None = None, **options: Any
) -> Events:
    """The events of a recording, in the order of their times.

    Args:
        file: its ending is one of ``FORMATS``.
        sensor: height and width in pixels.
        unsorted: what to do where times run backwards: ``refuse`` or ``sort``.
        content: of the file, where that is known.
        options: of the format.

    Raises:
        ValueError: the file is truncated or of another format, holds no event, events beyond the sensor, or times that
            run backwards; the message names it and the place in it.
        OSError: it can't be read.
        ImportError: the format needs a package that is missing.
    """
    known = FORMATS.get(file.suffix.lower())
    if known is None:
        raise ValueError(f"{file}: expected a recording that ends in {', '.join(FORMATS)}")
    return known(file, content_of(file) if content is None else content, sensor, unsorted, **options)
