"""One cell of the table: a training run in a folder of its own, which is not run again once it is finished."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import read_whole
from ...training import Observer, RunFolder, TrainConfig, run

DENSE = "dense"

# What the table takes from the summary of a run.
_TOLD = ("accuracy", "connectivity", "synops")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


@dataclass(frozen=True)
class Cell:
    """A network of the table: what it is pruned by (``dense``: not at all), how far, and how it is trained."""

    criterion: str
    connectivity: float
    config: TrainConfig

    @property
    def folder(self) -> str:
        """Name of its folder in that of the table."""
        if self.criterion == DENSE:
            return f"dense-seed{self.config.seed}"
        return f"{self.criterion}-{100 * self.connectivity:g}-seed{self.config.seed}"

    def summary(self, table: Path) -> dict[str, Any] | None:
        """What the finished run left; None where there is none.

        Raises:
            ValueError: the cell's folder holds another run, or its summary is damaged.
        """
        path = table / self.folder
        held = RunFolder.stored_config(path)
        if held is None:
            return None
        differing = self.config.differing(held.to_dict())
        if set(differing) - {"reference"}:  # a dense twin may lie elsewhere
            raise ValueError(
                f"out: {path} holds a run with other settings ({', '.join(differing)}); name another folder"
            )
        file = path / "summary.json"
        if not file.exists():
            return None
        try:
            summary = json.loads(read_whole(file))
            columns = [summary["compacted"], *([summary["dense"]] if summary["dense"] else [])]
            if not all(_is_number(column[name]) for column in columns for name in _TOLD) or not columns[-1]["synops"]:
                raise ValueError(f"expected numbers for {', '.join(_TOLD)}")
        except (KeyError, OSError, RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{file}: not the summary of a run ({error})") from error
        return summary


def run_cell(cell: Cell, table: Path, observer: Observer) -> None:
    """Train the cell, or go on where it was interrupted, beside its seed's dense network, which is finished.

    Raises:
        ValueError: a setting is not usable; nothing has been trained.
        Interrupted: the observer asked to stop; a checkpoint is written.
    """
    config = cell.config
    if cell.criterion != DENSE:
        config = config.changed(reference=str(table / f"dense-seed{config.seed}"))
    path = RunFolder.inside(table, cell.folder)
    with RunFolder(path, "resume" if RunFolder.stored_config(path) else "new") as folder:
        run(config, folder, observer)
