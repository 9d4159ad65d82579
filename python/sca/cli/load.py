"""What ``eval`` and ``report`` share: a run's network and its data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ..data import Dataset
from ..training import RunFolder, TrainConfig, load_data


def load_run(
    path: Path, data_dir: Path | None, load: Callable[[Path], nn.Module]
) -> tuple[nn.Module, Dataset, TrainConfig]:
    """The network that ``load`` makes of the run in the folder ``path``, the data that it was trained on, and its
    configuration; all on the run's device where this machine has it, else on the CPU."""
    changes: dict[str, Any] = {} if data_dir is None else {"data_dir": str(data_dir)}
    try:
        try:
            config = RunFolder.stored_config(path, **changes)
        except ValueError:  # of another machine's device, perhaps
            config = RunFolder.stored_config(path, device="cpu", **changes)
    except OSError as error:
        raise ValueError(f"run: expected the folder of a run, got {path} ({error.strerror})") from error
    if config is None:
        raise ValueError(f"run: expected the folder of a run, got {path}")
    return load(path).to(config.device), load_data(config).to(config.device), config
