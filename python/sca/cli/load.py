"""What ``eval`` and ``report`` share: a run's network and its data."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..data import Dataset
from ..training import RunFolder, load_data, load_model


def load_run(path: Path, data_dir: Path | None) -> tuple[nn.Module, Dataset]:
    """The compacted network of the run in the folder ``path``, and the data that it was trained on."""
    config = RunFolder.stored_config(path)
    if config is None:
        raise ValueError(f"run: expected the folder of a run, got {path}")
    if data_dir is not None:
        config = config.changed(data_dir=str(data_dir))
    return load_model(path), load_data(config)
