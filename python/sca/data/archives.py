"""Archives of data sets: downloaded once, by checksum, and unpacked once, whole."""

from __future__ import annotations

import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

__all__ = ["Archive", "cache_folder", "download", "made_whole", "unpacked"]

_CHECKSUMS = {"sha256": "SHA-256", "md5": "MD5"}
# What folders are called while they are made, before the number of the process.
_PARTIAL = ".partial-"


class Archive(NamedTuple):
    """One published file.

    Attributes:
        file: its name.
        url: where it can be fetched; or a page, where that takes a browser.
        checksum: ``sha256:...`` or ``md5:...``.
        by_hand: whether it takes a browser.
    """

    file: str
    url: str
    checksum: str
    by_hand: bool = False


def cache_folder(folder: str | None = None) -> Path:
    """Where what is made once is kept: the folder named, or the user's cache.

    Raises:
        ValueError: no folder is named, and pooch, which knows where caches are, is missing.
    """
    if folder is not None:
        return Path(folder)
    try:
        return Path(_pooch().os_cache("sca"))
    except ImportError as error:
        raise ValueError(
            "cache_dir: expected a folder, since the package pooch, which finds the user's cache, is missing"
        ) from error


def download(name: str, archive: Archive, cache: Path, untar_to: str | None = None) -> Any:
    """The file in the cache, fetched where it is not there; or its members, where it is a .tar to be unpacked.

    Args:
        name: of the data set.
        untar_to: folder of the cache to unpack it in.

    Raises:
        ValueError: it can't be fetched, or has another checksum.
    """
    kind, _, digest = archive.checksum.partition(":")
    advice = f"({_CHECKSUMS[kind]} {digest}), unpack it and pass its folder as data_dir"
    if archive.by_hand:
        raise ValueError(
            f"data_dir: expected a folder with {name}, got none: fetch {archive.file} with a browser from "
            f"{archive.url} {advice}"
        )
    try:
        pooch = _pooch()
        return pooch.retrieve(
            archive.url,
            known_hash=archive.checksum,
            path=cache,
            fname=archive.file,
            processor=None if untar_to is None else pooch.Untar(extract_dir=untar_to),
            progressbar=True,
        )
    except ImportError as error:
        raise ValueError(f"data_dir: expected a folder with {name}; downloading it needs the package pooch") from error
    except Exception as error:  # every transport raises its own kind
        raise ValueError(
            f"{name}: no download from {archive.url} ({error}); fetch the archive from any mirror {advice}"
        ) from error


def unpacked(archive: Path, folder: Path) -> Path:
    """``folder`` with what is in a .zip or .tar archive, unpacked where that was not done.

    Raises:
        ValueError: the archive is damaged; nothing is left of it.
        OSError: the disk is full or the folder not writable.
    """
    if folder.is_dir():
        return folder

    def unpack(place: Path) -> str:
        if not hasattr(tarfile, "data_filter"):  # Python 3.10 and 3.11 as they were before June 2023
            raise ValueError(
                f"{archive}: this Python can't unpack it safely; unpack it and pass its folder as data_dir"
            )
        try:
            # members that would lie outside are left out, or refused
            if archive.suffix.lower() == ".zip":
                with zipfile.ZipFile(archive) as members:
                    members.extractall(place, filter(_lies_inside, members.namelist()))
            else:
                with tarfile.open(archive) as members:
                    members.extractall(place, filter="data")
                    while members.fileobj.read(2**20):  # to the checksum, which stands behind the last member
                        pass
        except Exception as error:  # whatever damaged bytes bring about
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ValueError(f"{archive}: damaged, or no archive ({error})") from error
        return folder.name

    return made_whole(folder.parent, unpack)


def made_whole(parent: Path, make: Callable[[Path], str]) -> Path:
    """A new folder in ``parent`` with all that ``make(place)`` writes to ``place``, or none.

    It is made beside, and gets the name that ``make`` returns at the end; where another process has made one of that
    name meanwhile, that is taken.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{_PARTIAL}*"):
        if not _runs(left.name.split("-")[1]):
            shutil.rmtree(left, ignore_errors=True)
    place = Path(tempfile.mkdtemp(prefix=f"{_PARTIAL}{os.getpid()}-", dir=parent))
    try:
        folder = parent / make(place)
        for file in place.rglob("*"):
            if file.is_file():
                with open(file, "rb") as written:
                    os.fsync(written.fileno())
        place.chmod(0o755)  # which a temporary folder is not
        try:
            os.rename(place, folder)
        except OSError:
            if not folder.is_dir():
                raise
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(parent)) from error  # a failed write names no file by itself
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return folder


def _lies_inside(member: str) -> bool:
    path = PurePosixPath(member)
    return not path.is_absolute() and ".." not in path.parts


def _runs(process: str) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _pooch() -> Any:
    import pooch  # half a second of import time, and of the extra ``train``

    return pooch
