"""Small data sets of event cameras in their official folders, of random recordings."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from sca.data import FrameSettings, readers
from sca.data.frames import integrate
from tests.framework import event_files as files

DIGITS = tuple("0123456789")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NUMBERS = (0, 99, 100, 999)
SEED = itertools.count()


def nmnist_files(root: Path, count: int = 2) -> Path:
    """So many training recordings of each digit, and one for the test."""
    for split, digit, number in itertools.product(("Train", "Test"), DIGITS, range(count)):
        folder = root / split / digit
        folder.mkdir(parents=True, exist_ok=True)
        if split == "Train" or number == 0:
            files.write_atis(folder / f"{number:05d}.bin", files.random_events(60, (34, 34), seed=next(SEED)))
    return root


def dvs_cifar10_files(root: Path, ending: str = ".aedat") -> Path:
    for name, number in itertools.product(CLASSES, NUMBERS):
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        write = files.write_aedat2 if ending == ".aedat" else files.write_arrays
        write(folder / f"cifar10_{name}_{number}{ending}", files.random_events(60, (128, 128), seed=next(SEED)))
    return root


def gesture_files(root: Path, rows: dict[str, str] | None = None) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for user in ("user01_led", "user02_lab"):
        files.write_aedat3(root / f"{user}.aedat", files.random_events(2_000, (128, 128), seed=next(SEED)))
        lines = "".join(f"{label},{8_000 * label},{8_000 * label + 8_000}\n" for label in range(1, 12))
        text = "class,startTime_usec,endTime_usec\n" + lines
        (root / f"{user}_labels.csv").write_text((rows or {}).get(user, text))
    (root / "trials_to_train.txt").write_text("user01_led.aedat\n")
    (root / "trials_to_test.txt").write_text("user02_lab.aedat\n\n")
    return root


def array_files(root: Path, ending: str = ".npz") -> Path:
    for split, name, number in itertools.product(("train", "test"), ("left", "right"), range(2)):
        folder = root / split / name
        folder.mkdir(parents=True, exist_ok=True)
        files.write_arrays(folder / f"{number}{ending}", files.random_events(40, (24, 32), seed=next(SEED)))
    return root


def frames_of(file: Path, sensor: tuple[int, int], size: tuple[int, int], steps: int = 10) -> np.ndarray:
    return integrate(readers.read(file, sensor), FrameSettings(), steps, sensor, size)
