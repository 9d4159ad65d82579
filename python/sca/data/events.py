"""Event cameras: N-MNIST, DVS-CIFAR10 and DVS128 Gesture from their official files, and arrays of one's own.

Each from a folder that holds the files or the archives as published, or, where that is possible, by a download.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from ..files import read_whole
from .archives import Archive, cache_folder, download, unpacked
from .dataset import Dataset, Split
from .frame_cache import Part, Recording, Recordings, framed
from .readers import FORMATS
from .settings import FrameSettings
from .splits import SPLITS

__all__ = ["EVENT_DATASETS"]

_log = logging.getLogger(__name__)

_MENDELEY = "https://data.mendeley.com/public-files/datasets/468j46mzdv/files"
_NMNIST = (
    Archive(
        "Train.zip",
        f"{_MENDELEY}/39c25547-014b-4137-a934-9d29fa53c7a0/file_downloaded",
        "md5:20959b8e626244a1b502305a9e6e2031",
    ),
    Archive(
        "Test.zip",
        f"{_MENDELEY}/05a4d654-7e03-4c15-bdfa-9bb2bcbea494/file_downloaded",
        "md5:69ca8762b2fe404d9b9bad1103e97832",
    ),
)
_FIGSHARE = "https://ndownloader.figshare.com/files"
_CIFAR10 = {
    "airplane": (7712788, "0afd5c4bf9ae06af762a77b180354fdd"),
    "automobile": (7712791, "8438dfeba3bc970c94962d995b1b9bdd"),
    "bird": (7712794, "a9c207c91c55b9dc2002dc21c684d785"),
    "cat": (7712812, "52c63c677c2b15fa5146a8daf4d56687"),
    "deer": (7712815, "b6bf21f6c04d21ba4e23fc3e36c8a4a3"),
    "dog": (7712818, "f379ebdf6703d16e0a690782e62639c3"),
    "frog": (7712842, "cad6ed91214b1c7388a5f6ee56d08803"),
    "horse": (7712851, "e7cbbf77bec584ffbf913f00e682782a"),
    "ship": (7712836, "41c7bd7d6b251be82557c6cce9a7d5c9"),
    "truck": (7712839, "89f3922fd147d9aeff89e76a2b0b70a7"),
}
_GESTURE = Archive(
    "DvsGesture.tar.gz",
    "https://ibm.ent.box.com/s/3hiq58ww1pbbjrinh367ykfdf60xsfm8/folder/50167556794",
    "md5:8a5c71fb11e24e5ca5b11866ca6c00a1",
    by_hand=True,
)
_GESTURES = (
    "hand clapping",
    "right hand wave",
    "left hand wave",
    "right arm clockwise",
    "right arm counter-clockwise",
    "left arm clockwise",
    "left arm counter-clockwise",
    "arm roll",
    "air drums",
    "air guitar",
    "other gestures",
)
# First line of a file of labels; and what no clock of a recording shows, in microseconds.
_LABELS, _MOST_TIME = "class,startTime_usec,endTime_usec", 2**53
_TRIALS = {"train": "trials_to_train.txt", "test": "trials_to_test.txt"}
_CIFAR10_NUMBERS = 1000


def nmnist(data_dir: Path | None, settings: FrameSettings, time_steps: int) -> Dataset:
    """N-MNIST (Orchard et al., 2015; CC BY-SA 4.0): 60,000 + 10,000 recordings of handwritten digits, 34 x 34.

    Args:
        data_dir: the folder with ``Train/<digit>/*.bin`` and ``Test/<digit>/*.bin``, its parent, or one with Train.zip
            and Test.zip; None: both are downloaded into the cache.

    Args, Raises: as for :func:`sca.data.load`.
    """
    settings.refuse("nmnist", "whose camera and split are known", "sensor", "event_columns", "event_split")
    cache = _cache(settings) / "nmnist"
    splits = {"train": "Train", "test": "Test"}
    root = None if data_dir is None else _holding(data_dir, ("", "N-MNIST", "NMNIST"), splits.values())
    if root is not None:
        folders = {split: root / name for split, name in splits.items()}
    else:
        found = _archives("nmnist", data_dir, _NMNIST, cache, "CC BY-SA 4.0, Garrick Orchard et al.")
        if found is None:
            raise ValueError(
                f"data_dir: expected the folders Train and Test of N-MNIST, or Train.zip and Test.zip, in {data_dir}"
            )
        root = cache
        folders = {split: _inside(place, splits[split]) for split, place in zip(splits, found, strict=True)}
    classes = tuple("0123456789")
    files = [
        Recording(file, split, (Part(label),))
        for split, folder in folders.items()
        for label, file in _by_class(folder, split, classes, (".bin",))
    ]
    recordings = Recordings("nmnist", root, tuple(files), (34, 34), classes, "official split", {})
    return _dataset(recordings, settings, time_steps)


def dvs_cifar10(data_dir: Path | None, settings: FrameSettings, time_steps: int) -> Dataset:
    """DVS-CIFAR10 (Li et al., 2017; CC BY 4.0): 10 x 1,000 recordings of CIFAR-10's images, 128 x 128, here at 48 x 48.

    Args:
        data_dir: the folder with ``<class>/cifar10_<class>_<number>.aedat`` (AEDAT 2.0), or ``.mat`` files that end in
            the number, or with the archives ``<class>.zip``; None: these are downloaded into the cache.

    Args, Raises: as for :func:`sca.data.load`.
    """
    settings.refuse("dvs_cifar10", "whose camera is known", "sensor", "event_columns")
    cache = _cache(settings) / "dvs_cifar10"
    classes = tuple(_CIFAR10)
    root = None if data_dir is None else _holding(data_dir, ("", "CIFAR10DVS", "DVS-CIFAR10"), classes)
    if root is not None:
        folders = [root / name for name in classes]
    else:
        archives = [Archive(f"{c}.zip", f"{_FIGSHARE}/{n}", f"md5:{md5}") for c, (n, md5) in _CIFAR10.items()]
        found = _archives("dvs_cifar10", data_dir, archives, cache, "CC BY 4.0, Hongmin Li et al.")
        if found is None:
            raise ValueError(
                f"data_dir: expected a folder for each class of DVS-CIFAR10 ({', '.join(classes)}), or the archive of "
                f"each, in {data_dir}"
            )
        root = cache
        folders = [_inside(place, name) for place, name in zip(found, classes, strict=True)]
    split = settings.event_split or "tebn"
    files = []
    for label, (name, folder) in enumerate(zip(classes, folders, strict=True)):
        tests, seen = SPLITS[split](name), {}
        for file in _recordings_in(folder, (".aedat", ".mat")):
            number = re.search(r"(\d+)$", file.stem)
            if number is None or int(number[1]) >= _CIFAR10_NUMBERS:
                raise ValueError(f"{file}: expected a name that ends in a number from 0 to {_CIFAR10_NUMBERS - 1}")
            if (twin := seen.setdefault(int(number[1]), file)) is not file:
                raise ValueError(f"{file}: expected each recording once, got number {number[1]} as {twin.name} too")
            place = "test" if int(number[1]) in tests else "train"
            files.append(Recording(file, place, (Part(label),)))
    recordings = Recordings("dvs_cifar10", root, tuple(files), (128, 128), classes, f"split {split}", {})
    return _dataset(recordings, settings, time_steps, side=48, shift=5, mirror=True)


def dvs_gesture(data_dir: Path | None, settings: FrameSettings, time_steps: int) -> Dataset:
    """DVS128 Gesture (Amir et al., CVPR 2017; CC BY 4.0): 1,176 + 288 gestures of 29 people, 11 classes, 128 x 128.

    Args:
        data_dir: the folder with ``user*.aedat`` (AEDAT 3.1), their ``_labels.csv``, ``trials_to_train.txt`` and
            ``trials_to_test.txt``, its parent, or one with DvsGesture.tar.gz. It takes a browser to fetch that.

    Args, Raises: as for :func:`sca.data.load`.
    """
    settings.refuse("dvs_gesture", "whose camera and split are known", "sensor", "event_columns", "event_split")
    cache = _cache(settings) / "dvs_gesture"
    root = None if data_dir is None else _holding(data_dir, ("", "DvsGesture"), _TRIALS.values())
    if root is None:
        found = _archives("dvs_gesture", data_dir, (_GESTURE,), cache, "CC BY 4.0, Arnon Amir et al.")
        root = found and _holding(found[0], ("", "DvsGesture"), _TRIALS.values())
        if root is None:
            raise ValueError(
                f"data_dir: expected {' and '.join(_TRIALS.values())} of DVS128 Gesture, or {_GESTURE.file} with "
                f"these, in {data_dir}"
            )
    files, seen = [], {}
    for split, trials in _TRIALS.items():
        lines = _text(root / trials).splitlines()
        for number, line in enumerate(lines, 1):
            if not (name := line.strip()):
                continue
            file = root / name
            if Path(name).name != name or not file.is_file():
                raise ValueError(f"{root / trials}, line {number}: expected a recording in {root}, got {name!r}")
            place = f"{trials}, line {number}"
            if (before := seen.setdefault(name, place)) is not place:
                raise ValueError(f"{root / place}: expected each recording once, got {name}, as in {before}")
            files.append(Recording(file, split, tuple(_gestures(file.with_name(f"{file.stem}_labels.csv")))))
    recordings = Recordings("dvs_gesture", root, tuple(files), (128, 128), _GESTURES, "official split", {})
    return _dataset(recordings, settings, time_steps)


def event_arrays(data_dir: Path | None, settings: FrameSettings, time_steps: int) -> Dataset:
    """Recordings of one's own: ``<split>/<class>/*`` in .npy, .npz or .h5, with t in microseconds, x, y and p.

    Args:
        data_dir: the folder with ``train`` and ``test``; classes are the folders in ``train``, in order of their names.
        settings: with ``sensor``, and ``event_columns`` where arrays name no columns.

    Args, Raises: as for :func:`sca.data.load`.
    """
    settings.refuse("event_arrays", "whose folders say the split", "event_split")
    if data_dir is None:
        raise ValueError("data_dir: expected the folder with train/<class> and test/<class>, got none")
    if settings.sensor is None:
        raise ValueError("sensor: expected the camera's height and width in pixels, as in --sensor 128,128, got none")
    root = _holding(data_dir, ("",), ("train", "test"))
    if root is None:
        raise ValueError(
            f"data_dir: expected the folders train and test, each with a folder for each class, in {data_dir}"
        )
    classes = tuple(_folders_in(root / "train"))
    endings = [ending for ending in FORMATS if ending not in (".bin", ".aedat", ".mat")]
    files = []
    for split in ("train", "test"):
        unknown = [name for name in _folders_in(root / split) if name not in classes]
        if unknown or not classes:
            found = unknown[0] if unknown else "none"
            raise ValueError(f"{root / split}: expected folders of the classes in train, got {found}")
        for label, file in _by_class(root / split, split, classes, endings):
            files.append(Recording(file, split, (Part(label),)))
    options = {"columns": settings.event_columns}
    recordings = Recordings(
        "event_arrays", root, tuple(files), tuple(settings.sensor), classes, "split by folder", options
    )
    return _dataset(recordings, settings, time_steps)


EVENT_DATASETS: dict[str, Callable[[Path | None, FrameSettings, int], Dataset]] = {
    load.__name__: load for load in (nmnist, dvs_cifar10, dvs_gesture, event_arrays)
}


def _dataset(
    recordings: Recordings,
    settings: FrameSettings,
    time_steps: int,
    side: int | None = None,
    shift: int = 0,
    mirror: bool = False,
) -> Dataset:
    """Frame the recordings, or take what is kept of them.

    Args:
        side: of the frames where the settings name none; None: the camera's.
        shift, mirror: as of :class:`Dataset`.
    """
    counts = Counter(recording.split for recording in recordings.files)
    for split in ("train", "test"):
        if not counts[split]:
            raise ValueError(f"{recordings.root}: expected recordings for {split}, got none ({recordings.split})")
    side = settings.frame_size or side
    size = recordings.sensor if side is None else (side, side)
    resamples = settings.frame_resize == "interpolate" and size != recordings.sensor
    if not resamples and any(own > all_of_it for own, all_of_it in zip(size, recordings.sensor, strict=True)):
        raise ValueError(
            f"frame_size: expected at most the camera's {min(recordings.sensor)} pixels, got {side}; larger frames "
            "take frame_resize interpolate"
        )
    stored = recordings.sensor if resamples else size
    splits = framed(recordings, settings, time_steps, stored, _cache(settings))
    return Dataset(
        name=recordings.name,
        **{name: Split(*map(torch.from_numpy, (s.frames, s.labels))) for name, s in splits.items()},
        num_classes=len(recordings.classes),
        mean=(0.0, 0.0),
        std=(1.0, 1.0),
        full_scale=1.0,
        shift=shift,
        mirror=mirror,
        size=size if resamples else None,
        classes=recordings.classes,
        told=f"{_told(settings, time_steps, recordings.sensor, size)}; {recordings.split}",
    )


def _told(settings: FrameSettings, steps: int, sensor: tuple[int, int], size: tuple[int, int]) -> str:
    """How frames are made, in words."""
    ends = {
        "number": "of equal numbers of events",
        "time": "of equal time",
        "duration": f"of {settings.frame_duration} µs",
    }
    values = {"sum": "sums", "binary": "binary", "clipped": f"sums up to {settings.frame_clip}"}
    how = {"integrate": "integrated", "interpolate": "interpolated"}[settings.frame_resize]
    resized = "" if size == sensor else f", {how} from {sensor[0]} x {sensor[1]}"
    return f"{steps} frames {ends[settings.frame_by]}, {values[settings.frame_values]}, {size[0]} x {size[1]}{resized}"


def _cache(settings: FrameSettings) -> Path:
    return cache_folder(settings.cache_dir)


def _holding(parent: Path, places: Iterable[str], wanted: Iterable[str]) -> Path | None:
    """The first of the places in a folder where all that is wanted lies; None where none of it does anywhere.

    Raises:
        ValueError: the folder can't be read, or a part of what is wanted is missing.
    """
    wanted = list(wanted)
    try:
        os.listdir(parent)
    except OSError as error:
        raise ValueError(f"data_dir: {error}") from error
    for folder in (parent / place for place in places):
        missing = [name for name in wanted if not (folder / name).exists()]
        if not missing:
            return folder
        if len(missing) < len(wanted):
            raise ValueError(f"data_dir: {folder} lacks {', '.join(missing)}")
    return None


def _inside(folder: Path, name: str) -> Path:
    """The folder of that name in an archive's, or the latter itself where the archive has none."""
    return folder / name if (folder / name).is_dir() else folder


def _archives(
    name: str, data_dir: Path | None, archives: Iterable[Archive], cache: Path, licence: str
) -> list[Path] | None:
    """Folders with what is in the archives: those in ``data_dir``, or downloaded; None where it holds none of them.

    Raises:
        ValueError: it lacks some of them, or one is damaged.
    """
    archives = list(archives)
    if data_dir is None:
        _log.warning("%s: licence %s", name, licence)
        files = [Path(download(name, archive, cache)) for archive in archives]
    else:
        held = {entry.name.lower(): Path(entry) for entry in os.scandir(data_dir)}
        missing = [archive.file for archive in archives if archive.file.lower() not in held]
        if len(missing) == len(archives):
            return None
        if missing:
            raise ValueError(f"data_dir: {data_dir} lacks {', '.join(missing)}")
        files = [held[archive.file.lower()] for archive in archives]
    return [unpacked(file, cache / f"unpacked-{file.stem}-{_mark(file)}") for file in files]


def _mark(file: Path) -> str:
    """What tells a file from others of its name, and from what it was before."""
    stat = file.stat()
    told = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    return hashlib.blake2b(os.fsencode(told), digest_size=6).hexdigest()


def _by_class(folder: Path, split: str, classes: Iterable[str], endings: Iterable[str]) -> Iterator[tuple[int, Path]]:
    """Label and file of each recording in a folder of classes.

    Raises:
        ValueError: the folder lacks one, or has another or a recording besides; one to be learned holds no recording.
    """
    classes, endings = list(classes), tuple(endings)
    others = [name for name in _folders_in(folder) if name not in classes]
    if others:
        raise ValueError(f"{folder}: expected folders {', '.join(classes)}, got {others[0]} as well: no label for it")
    for name in (entry.name for entry in os.scandir(folder) if entry.is_file()):
        if os.path.splitext(name)[1].lower() in endings:
            raise ValueError(f"{folder / name}: expected recordings in a folder of their class: no label for it")
    for label, name in enumerate(classes):
        if not (folder / name).is_dir():
            raise ValueError(f"{folder}: expected folders {', '.join(classes)}, got none named {name}")
        yield from ((label, file) for file in _recordings_in(folder / name, endings, needed=split == "train"))


def _folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder, in their order; what begins with a dot is none."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _recordings_in(folder: Path, endings: Iterable[str], needed: bool = True) -> list[Path]:
    """The files in a folder that end so, in order of their names; what begins with a dot is none.

    Raises:
        ValueError: another file is there; or none, where some are needed.
    """
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file() and not entry.name.startswith("."))
    for name in names:
        if os.path.splitext(name)[1].lower() not in endings:
            raise ValueError(f"{folder / name}: expected recordings that end in {', '.join(endings)} in this folder")
    if needed and not names:
        raise ValueError(f"{folder}: expected recordings that end in {', '.join(endings)}, got none")
    return [folder / name for name in names]


def _gestures(file: Path) -> Iterator[Part]:
    """The samples of a recording by its file of labels: class (from 1), start and end in microseconds."""
    head, *lines = _text(file).splitlines() or [""]
    if head.replace(" ", "") != _LABELS:
        raise ValueError(f"{file}, line 1: expected {_LABELS}, got {head!r:.80}")
    rows = [(number, line) for number, line in enumerate(lines, 2) if line.strip()]
    if not rows:
        raise ValueError(f"{file}: expected a label for each gesture, got none")
    for number, line in rows:
        try:
            label, start, end = (int(value) for value in line.split(","))
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: expected three whole numbers, got {line!r:.80}") from error
        if not 1 <= label <= len(_GESTURES) or not 0 <= start < end <= _MOST_TIME:
            raise ValueError(
                f"{file}, line {number}: expected a class from 1 to {len(_GESTURES)}, and start < end, got {line:.80}"
            )
        yield Part(label - 1, start, end)


def _text(file: Path) -> str:
    try:
        return read_whole(file).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: expected a readable text ({error})") from error
