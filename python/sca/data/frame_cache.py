"""Frames of a set of recordings, made once and then mapped from the disk.

What is kept is named by a digest of all that it depends on: the content of the files, which samples they hold, and how
these become frames. Other parameters, or a changed file, make another entry beside.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import json
import logging
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from ..files import open_lock, read_whole, write_json
from . import readers
from .archives import made_whole
from .frames import integrate
from .settings import FrameSettings

__all__ = ["Framed", "Part", "Recording", "Recordings", "framed"]

_log = logging.getLogger(__name__)

# Of what is stored: a change of the arithmetic makes another version, and old entries are not taken any more.
_VERSION = 1
# Counts are stored in the first type that holds them all; torch indexes each of these.
_TYPES = (np.uint8, np.int16, np.int32)
_SPLITS = ("train", "test")
# Bytes from which on a file is worth a thread; and how many files tell what all are like.
_LARGE, _SAMPLED = 2**18, 16


@dataclass(frozen=True)
class Part:
    """One sample of a recording: its class, and where it is not the whole, its time in microseconds."""

    label: int
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class Recording:
    """A file, its split (``train`` or ``test``), and the samples in it."""

    file: Path
    split: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Recordings:
    """What is to be framed.

    Attributes:
        name: of the data set.
        root: folder that all files lie in.
        files: each with at least one sample; both splits have some.
        sensor: height and width of the camera in pixels.
        classes: their names.
        split: which one it is, in words.
        options: of the reader.
    """

    name: str
    root: Path
    files: tuple[Recording, ...]
    sensor: tuple[int, int]
    classes: tuple[str, ...]
    split: str
    options: dict[str, Any]


@dataclass(frozen=True)
class Framed:
    """One split: frames uint8, int16 or int32 ``[N, T, H, W, 2]`` (OFF, ON), mapped from the disk, and labels int64
    ``[N]``; classes take turns, so that the first so many samples are of all of them."""

    frames: np.ndarray
    labels: np.ndarray


def framed(
    recordings: Recordings, settings: FrameSettings, steps: int, size: tuple[int, int], cache: Path
) -> dict[str, Framed]:
    """The frames of both splits.

    Args:
        steps: frames of a sample.
        size: their height and width.
        cache: folder that they are kept in.

    Raises:
        ValueError: a recording is damaged, or what is kept is; the message names the file.
        OSError: a file can't be read, or the cache not be written; nothing is left half-written.
    """
    folder = cache / recordings.name
    shape = (steps, *size, 2)

    def asked(digests: _Digests) -> dict[str, Any]:
        return {
            "version": _VERSION,
            "shape": list(shape),
            "sensor": list(recordings.sensor),
            "options": recordings.options,
            **{name: getattr(settings, name) for name in _DECIDING},
            "recordings": digests.of_all(),
        }

    def found(digests: _Digests) -> dict[str, Framed] | None:
        if not digests.are_known:
            return None
        entry = folder / _entry(told := asked(digests))
        return _kept(entry, told, recordings, shape) if entry.is_dir() else None

    def make(place: Path, digests: _Digests) -> str:
        _frame_all(recordings, functools.partial(_samples, recordings, settings, steps, size, digests), shape, place)
        digests.store()
        write_json(place / "frames.json", told := asked(digests))
        return _entry(told)

    kept = found(_Digests(recordings, folder))
    if kept is None:
        with _alone(folder):
            digests = _Digests(recordings, folder)  # another process may have made what is wanted meanwhile
            # at first recordings are read once, for frames and digests; later, digests alone may find what is kept
            if any(folder.glob("*/frames.json")):
                digests.complete()
            if found(digests) is None:
                entry = made_whole(folder, functools.partial(make, digests=digests))
                _log.info("frames of %s are kept in %s", recordings.name, entry)
            kept = found(digests)
    return kept


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time, in one thread, works in a folder; the others wait, and say so."""
    folder.mkdir(parents=True, exist_ok=True)
    with open_lock(folder / ".lock") as lock:  # freed when it is closed, or the process is killed
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning("another process is framing recordings in %s: waiting for it", folder)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _entry(asked: dict[str, Any]) -> str:
    """The name of what is kept of this."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:20]


# What decides on the frames of a recording, beside their number and size.
_DECIDING = ("frame_by", "frame_duration", "frame_values", "frame_clip", "unsorted")


def _order(recordings: Recordings, split: str) -> tuple[dict[tuple[int, int], int], np.ndarray]:
    """The place of each sample of a split, by the numbers of its file and in it, and the labels by place."""
    seen: dict[int, int] = {}
    ranked = []
    for number, recording in enumerate(recordings.files):
        for position, part in enumerate(recording.parts if recording.split == split else ()):
            seen[part.label] = seen.get(part.label, -1) + 1
            ranked.append((seen[part.label], part.label, number, position))
    ranked.sort()
    places = {(number, position): place for place, (_, _, number, position) in enumerate(ranked)}
    return places, np.array([label for _, label, _, _ in ranked], np.int64)


def _samples(
    recordings: Recordings,
    settings: FrameSettings,
    steps: int,
    size: tuple[int, int],
    digests: _Digests,
    recording: Recording,
) -> list[np.ndarray]:
    """The frames of each part of a file, whose digest is taken by the way."""
    content = readers.content_of(recording.file)
    digests.take(recording, content)
    events = readers.read(recording.file, recordings.sensor, settings.unsorted, content, **recordings.options)
    found = []
    for part in recording.parts:
        own = events if part.start is None else events.between(part.start, part.end)
        if not len(own.t):
            raise ValueError(
                f"{recording.file}: expected events from {part.start:,} to {part.end:,} µs, got none: its labels are "
                "of another recording, or it is truncated"
            )
        found.append(integrate(own, settings, steps, recordings.sensor, size))
    return found


class _Digests:
    """A digest of each file's content. They are kept in ``folder`` beside the size and time of the file, which is read
    again where one of these has changed."""

    def __init__(self, recordings: Recordings, folder: Path) -> None:
        self._recordings = recordings
        root = hashlib.blake2b(os.fsencode(recordings.root.resolve()), digest_size=6).hexdigest()
        self._file = folder / f"digests-{root}.json"
        try:
            held = json.loads(read_whole(self._file))
        except (OSError, ValueError, RecursionError):  # none yet, or damaged: made anew
            held = {}
        above = os.path.join(recordings.root, "")
        self._names = {recording.file: os.fspath(recording.file).removeprefix(above) for recording in recordings.files}
        self._marks: dict[str, list[int]] = {}
        for file, name in self._names.items():
            stat = os.stat(file)
            self._marks[name] = [stat.st_size, stat.st_mtime_ns]
        known = held.items() if isinstance(held, dict) else ()
        self._known = {
            name: values[2]
            for name, values in known
            if isinstance(values, list) and len(values) == 3 and values[:2] == self._marks.get(name)
        }

    @property
    def are_known(self) -> bool:
        """Whether no file need be read for its digest."""
        return len(self._known) == len(self._marks)

    def take(self, recording: Recording, content: bytes) -> None:
        """Learn the digest of a file by its content.

        Raises:
            ValueError: it is another than it was.
        """
        digest = hashlib.sha256(content).hexdigest()[:32]
        if self._known.setdefault(self._names[recording.file], digest) != digest:
            raise ValueError(f"{recording.file}: changed while recordings were read; start again")

    def complete(self) -> None:
        """Read all files whose digest is not known."""
        fresh = [recording for recording in self._recordings.files if self._names[recording.file] not in self._known]
        if not fresh:
            return

        def work(number: int) -> None:
            self.take(fresh[number], readers.content_of(fresh[number].file))

        _all(work, [recording.file for recording in fresh], f"reading {self._recordings.name}")
        self.store()

    def store(self) -> None:
        """Keep them."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._file, {name: [*self._marks[name], digest] for name, digest in self._known.items()})

    def of_all(self) -> str:
        """One of the contents of all files, and of the samples in them."""
        whole = hashlib.sha256()
        for recording in self._recordings.files:
            parts = [(part.label, part.start, part.end) for part in recording.parts]
            whole.update(f"{self._known[self._names[recording.file]]} {recording.split} {parts}\n".encode())
        return whole.hexdigest()


class _TooLarge(Exception):
    """A count does not fit into the type that frames are stored in."""


def _frame_all(
    recordings: Recordings, samples: Callable[[Recording], list[np.ndarray]], shape: tuple[int, ...], place: Path
) -> None:
    """Write the frames of both splits into a folder, in the smallest type that holds them."""
    # some tell in advance, mostly, whether all would have to be framed a second time
    highest = max(int(frames.max()) for recording in _sampled(recordings.files) for frames in samples(recording))
    for kind in (kind for kind in _TYPES if highest <= np.iinfo(kind).max):
        with contextlib.suppress(_TooLarge):
            return _write(recordings, samples, shape, place, kind)
    raise ValueError(f"{recordings.root}: expected fewer than 2^31 events in a pixel of a frame")


def _write(
    recordings: Recordings,
    samples: Callable[[Recording], list[np.ndarray]],
    shape: tuple[int, ...],
    place: Path,
    kind: type[np.integer],
) -> None:
    orders = {split: _order(recordings, split) for split in _SPLITS}
    length = int(np.prod(shape)) * np.dtype(kind).itemsize
    files, starts = {}, {}
    try:
        for split, (_, labels) in orders.items():
            head = io.BytesIO()
            told = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False}
            np.lib.format.write_array_header_1_0(head, {**told, "shape": (len(labels), *shape)})
            files[split] = os.open(place / f"{split}.npy", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            starts[split] = os.write(files[split], head.getvalue())

        def work(number: int) -> None:
            recording = recordings.files[number]
            places, _ = orders[recording.split]
            for position, frames in enumerate(samples(recording)):
                if frames.max() > np.iinfo(kind).max:
                    raise _TooLarge
                content = memoryview(frames.astype(kind).tobytes())
                offset = starts[recording.split] + places[number, position] * length
                while content:
                    written = os.pwrite(files[recording.split], content, offset)
                    content, offset = content[written:], offset + written

        _all(work, [recording.file for recording in recordings.files], f"framing {recordings.name}")
    finally:
        for descriptor in files.values():
            os.close(descriptor)


def _kept(entry: Path, asked: dict[str, Any], recordings: Recordings, shape: tuple[int, ...]) -> dict[str, Framed]:
    """What an entry of the cache holds, if it is whole and what was asked for."""
    advice = f"; remove {entry}, and it is made anew"
    try:
        held = json.loads(read_whole(entry / "frames.json"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{entry / 'frames.json'}: expected what the frames beside it are ({error}){advice}"
        ) from error
    if held != asked:
        differing = [name for name in asked if not isinstance(held, dict) or held.get(name) != asked[name]]
        raise ValueError(
            f"{entry / 'frames.json'}: expected frames of these parameters, got others ({', '.join(differing)}){advice}"
        )
    found = {}
    for split in _SPLITS:
        _, labels = _order(recordings, split)
        file = entry / f"{split}.npy"
        try:
            # pages are private, so that the file stays as it is whatever becomes of the tensor made of them
            frames = np.load(file, mmap_mode="c", allow_pickle=False)
        except Exception as error:  # its head is read as Python, which raises what it likes
            raise ValueError(f"{file}: damaged ({error}){advice}") from error
        is_array = isinstance(frames, np.memmap)
        if not is_array or frames.shape != (len(labels), *shape) or frames.dtype not in _TYPES:
            got = f"{frames.dtype} {list(frames.shape)}" if is_array else "several arrays"
            raise ValueError(f"{file}: expected frames {[len(labels), *shape]}, got {got}{advice}")
        if (size := os.path.getsize(file)) != frames.offset + frames.nbytes:
            raise ValueError(f"{file}: expected {frames.offset + frames.nbytes:,} bytes, got {size:,}{advice}")
        found[split] = Framed(frames, labels)
    return found


def _sampled(files: Sequence[Any]) -> Sequence[Any]:
    """Some of them, evenly."""
    return files[:: -(-len(files) // _SAMPLED)]


def _all(work: Callable[[int], None], files: Sequence[Path], what: str) -> None:
    """Do ``work(i)`` for each file, with a bar on the standard error where that is a terminal; the first error ends it.
    As many threads as there are cores share large files; of small ones they would wait for one another."""
    count = len(files)
    large = statistics.fmean(os.path.getsize(file) for file in _sampled(files)) > _LARGE
    console = Console(stderr=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(cores) as pool:
        done = (pool.map if large else map)(work, range(count))
        try:
            for _ in track(done, what, count, console=console, transient=True, disable=not console.is_terminal):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
