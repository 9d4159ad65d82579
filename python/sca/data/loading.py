"""Data sets by name: one file each, found by its ``DATASETS`` entries.

A loader of images is a callable ``(data_dir: Path | None) -> Dataset``; one of recordings, among ``EVENT_DATASETS``, is
a callable ``(data_dir: Path | None, settings: FrameSettings, time_steps: int) -> Dataset``. Each raises ValueError or
OSError naming the file at fault.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from sca_kernels import checks

from ..registry import collect, lookup
from .dataset import Dataset
from .events import EVENT_DATASETS
from .settings import FRAMES_OF_EVENTS, MAX_TIME_STEPS, FrameSettings

__all__ = ["DATASETS", "load"]

DATASETS = collect(importlib.import_module(__package__), "DATASETS") | EVENT_DATASETS


def load(
    name: str, data_dir: str | Path | None = None, frames: FrameSettings | None = None, time_steps: int = 10
) -> Dataset:
    """Load a data set by name.

    Args:
        name: one of ``DATASETS``.
        data_dir: the folder that holds its files; None = the loader's own choice (embedded data, or a checksummed
            download).
        frames: how recordings of event cameras become frames; None: as :class:`FrameSettings` has it.
        time_steps: frames of a recording. Of both a data set of images has no use.

    Raises:
        ValueError: unknown name; missing, truncated or malformed files.
        TypeError: ``time_steps`` is no int.
    """
    loader = lookup(DATASETS, name, "data")
    checks.integer("time_steps", time_steps, 1, MAX_TIME_STEPS)
    folder = None if data_dir is None else Path(data_dir)
    frames = frames or FrameSettings()
    if name in EVENT_DATASETS:
        return loader(folder, frames, time_steps)
    frames.refuse(name, "which is no event camera's", *FRAMES_OF_EVENTS)
    return loader(folder)
