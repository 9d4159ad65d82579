"""Splits of DVS-CIFAR10, whose authors published none: which recordings of a class are for the test.

All are 9:1 in each class. ``tebn`` is the one that later works use, and its accuracy "typically much higher" than that
of a random split (SpikingJelly's documentation).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

__all__ = ["SPLITS"]


def tebn(name: str) -> set[int]:
    """Numbers 0 to 99 of each class (Duan et al., "Temporal effective batch normalization in spiking neural networks",
    NeurIPS 2022)."""
    return set(range(100))


def last_tenth(name: str) -> set[int]:
    """The last tenth of each class in the order of file names, as SpikingJelly's ``split_to_train_test_set`` has it."""
    return set(sorted(range(1000), key=str)[900:])


def random(name: str) -> set[int]:
    """100 of each class, drawn once: ``dvs_cifar10_random.json``."""
    return set(json.loads(Path(__file__).with_name("dvs_cifar10_random.json").read_text())[name])


#: Name -> function of a class: the numbers of its test recordings, of 0 to 999.
SPLITS: dict[str, Callable[[str], set[int]]] = {split.__name__: split for split in (tebn, last_tenth, random)}
