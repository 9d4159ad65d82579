"""Files written whole, a reader sees the old content or the new, never a part of it; and read whole, if they end.

A run's folder may have come from someone else: what is written replaces a symbolic link and leaves its target alone.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any


def write_whole(path: Path, content: bytes) -> None:
    """Write to a temporary file beside ``path``, flush it to the disk, then rename it over ``path``.

    Raises:
        OSError: the disk is full or the folder is not writable; it names ``path``, which is as it was.
    """
    temporary = path.parent / f"{path.name}.partial"
    try:
        with _fresh(temporary) as file:
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


def _fresh(path: Path) -> IO[bytes]:
    """A new file to write to. What has its name goes: a killed process left it, or it is a link laid for this one."""
    try:
        return open(path, "xb")
    except FileExistsError:
        path.unlink()
        return open(path, "xb")


def read_whole(path: Path, limit: int | None = None) -> bytes:
    """The content of a file.

    Raises:
        OSError: there is none; it is a pipe or a device, which may never end; it is larger than ``limit`` bytes.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if limit is not None and found.st_size > limit:
            raise OSError(errno.EFBIG, f"larger than {limit:,} bytes", str(path))
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def open_lock(path: Path) -> IO[bytes]:
    """A file to lock, made when missing and never emptied.

    Raises:
        OSError: it is not writable, a symbolic link, or no regular file.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return open(descriptor, "r+b")


def write_json(path: Path, value: Any) -> None:
    """:func:`write_whole` of readable JSON."""
    write_whole(path, as_json(value).encode())


def as_json(value: Any) -> str:
    """Readable JSON."""
    return json.dumps(value, indent=2) + "\n"


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """:func:`write_whole` of one JSON value a line."""
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
