"""Data sets that fit into memory: one file each, found by its ``DATASETS`` entries.

A loader is a callable ``(data_dir: Path | None) -> Dataset``; raises ValueError or OSError naming the file at fault.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ..registry import collect, lookup
from .dataset import Dataset, Split
from .policies import POLICIES

__all__ = ["DATASETS", "POLICIES", "Dataset", "Split", "load"]

DATASETS = collect(sys.modules[__name__], "DATASETS")


def load(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Load a data set by name.

    Args:
        name: one of ``DATASETS``.
        data_dir: the folder that holds its files; None = the loader's own choice (embedded data, or a checksummed
            download).

    Raises:
        ValueError: unknown name; missing, truncated or malformed files.
    """
    return lookup(DATASETS, name, "data")(None if data_dir is None else Path(data_dir))
