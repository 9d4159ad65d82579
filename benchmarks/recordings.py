"""Recordings of an event camera from their files to frames: by `sca.data`, and as its peers do it.

A party reads and frames all recordings of the N-MNIST folder, either into memory, recording by recording, or as the
first run of a user does, into files. Those of ours are one array for each split, flushed to the disk, under a digest of
all recordings; SpikingJelly's an archive of events and one of frames for each recording; tonic's, which its cache makes
in the first epoch, one HDF5 file for each.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from sca.bench.peers import installed
from sca.data import FrameSettings, load, readers
from sca.data.frames import integrate

from .measure import Party, require

NMNIST = os.environ.get("SCA_KERNELS_NMNIST_DIR")
STEPS, SENSOR = 10, (34, 34)
MEMORY, FILES = "memory", "files"


def ours(into: str) -> Party | None:
    """By `sca.data`; None where there are no recordings."""
    if NMNIST is None:
        return None
    settings = FrameSettings()

    def to_memory() -> None:
        for file in _files():
            integrate(readers.read(file, SENSOR), settings, STEPS, SENSOR, SENSOR)

    def to_files() -> None:
        with tempfile.TemporaryDirectory() as folder:
            load("nmnist", NMNIST, FrameSettings(cache_dir=folder), STEPS)

    return to_memory if into == MEMORY else to_files


def spikingjelly(into: str) -> Party | None:
    """By its decoder and its integration, or by what its data set does with the files of the archives."""
    if NMNIST is None or not installed("spikingjelly"):
        return None
    with stand_ins():
        from loguru import logger
        from spikingjelly.datasets.base import FrameFixedNumberBuilder, NeuromorphicDatasetConfig
        from spikingjelly.datasets.n_mnist import NMNIST as Dataset
        from spikingjelly.datasets.utils import integrate_events_by_fixed_frames_number, load_ATIS_bin
    logger.disable("spikingjelly")

    def frames(file: Path) -> np.ndarray:
        return integrate_events_by_fixed_frames_number(load_ATIS_bin(str(file)), "number", STEPS, *SENSOR)

    def to_files() -> None:
        with tempfile.TemporaryDirectory() as folder:
            events = Path(folder, "events")
            events.mkdir()
            Dataset.create_raw_from_extracted(Path(NMNIST), events)
            config = NeuromorphicDatasetConfig(
                Path(folder), train=True, data_type="frame", frames_number=STEPS, split_by="number"
            )
            FrameFixedNumberBuilder(config, events, *SENSOR).build()

    _check(frames, "SpikingJelly", STEPS)
    return _each(frames) if into == MEMORY else to_files


def tonic(into: str) -> Party | None:
    """By its decoder and its transform, without or with its cache on the disk."""
    if NMNIST is None or not installed("tonic"):
        return None
    from tonic import DiskCachedDataset
    from tonic.datasets import NMNIST as Dataset
    from tonic.io import read_mnist_file
    from tonic.transforms import ToFrame

    transform = ToFrame(sensor_size=Dataset.sensor_size, n_event_bins=STEPS)

    def frames(file: Path) -> np.ndarray:
        return transform(read_mnist_file(str(file), dtype=Dataset.dtype))

    files = list(_files())

    class Frames:
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, number: int) -> tuple[np.ndarray, int]:
            return frames(files[number]), 0

    def to_files() -> None:
        with tempfile.TemporaryDirectory() as folder:
            cached = DiskCachedDataset(Frames(), cache_path=folder)
            for number in range(len(cached)):
                cached[number]

    _check(frames, "tonic", STEPS - 1)  # of the last frame it drops the rest
    return _each(frames) if into == MEMORY else to_files


def _each(frames: Callable[[Path], np.ndarray]) -> Party:
    """All files, one after the other."""

    def party() -> None:
        for file in _files():
            frames(file)

    return party


def _check(frames: Callable[[Path], np.ndarray], name: str, compared: int) -> None:
    """Have a peer's frames [T, 2, H, W] of some recordings, the first so many of them, be as ours."""
    for file in list(_files())[::100]:
        own = integrate(readers.read(file, SENSOR), FrameSettings(), STEPS, SENSOR, SENSOR).transpose(0, 3, 1, 2)
        require(np.array_equal(frames(file)[:compared], own[:compared]), f"{name} makes the same frames of {file.name}")


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Have SpikingJelly's data sets import torchvision and torchaudio where these are not installed: they want them for
    downloads, pictures and sound, of which nothing is used here."""
    modules = ("torchvision", "torchvision.datasets", "torchvision.datasets.utils", "torchaudio")
    empty = {name: types.ModuleType(name) for name in modules if not installed(name.partition(".")[0])}
    for module in empty.values():
        module.__getattr__ = lambda name: object
    sys.modules.update(empty)
    try:
        yield
    finally:
        for name in empty:
            del sys.modules[name]


def _files() -> Iterator[Path]:
    for split in ("Train", "Test"):
        yield from sorted(Path(NMNIST, split).glob("*/*.bin"))
