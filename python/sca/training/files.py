"""Files written whole: a reader sees the old content or the new, never a part of it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes) -> None:
    """Write to a temporary file beside ``path``, flush it to the disk, then rename it over ``path``.

    Raises:
        OSError: the disk is full or the folder is not writable; it names ``path``, which is as it was.
    """
    temporary = path.with_name(f"{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error  # a failed write names no file by itself
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """:func:`write_whole` of readable JSON."""
    write_whole(path, as_json(value).encode())


def as_json(value: Any) -> str:
    """Readable JSON."""
    return json.dumps(value, indent=2) + "\n"


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """:func:`write_whole` of one JSON value a line."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
