"""Live view of many runs: one bar on a terminal, one line per finished run everywhere."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from ..experiments.table1 import Cell
from ..training import Trainer
from .display import Display


class CellsDisplay(Display):
    """Callback of the runs of a table, and a context manager as :class:`Display`.

    Args:
        console: what to write to.
        total: number of runs.
    """

    def __init__(self, console: Console, total: int) -> None:
        super().__init__(console)
        self._total = total
        self._name = ""

    def begin(self, number: int, cell: Cell) -> None:
        """The run of this cell comes next."""
        self._name = f"{number}/{self._total} {cell.folder}"

    def end(self, cell: Cell, summary: dict[str, Any]) -> None:
        """Print a finished run's line."""
        network = summary["compacted"]
        self._console.print(
            f"{self._name}: accuracy {network['accuracy']:.2%}, connectivity {network['connectivity']:.2%}",
            soft_wrap=True,
        )

    def on_start(self, trainer: Trainer) -> None:
        """Start a bar for the run."""
        self.start_bar(trainer)

    def on_batch(self, trainer: Trainer) -> None:
        """Move the bar."""
        epoch = f"epoch {trainer.epoch + 1}/{trainer.epochs}"
        self._bar.update(self._task, description=self._name, completed=trainer.step, figures=epoch)

    def on_epoch(self, row: dict[str, Any]) -> None:
        """Say nothing: there are many."""
