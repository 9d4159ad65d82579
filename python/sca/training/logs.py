"""Callbacks that write down what a run says about itself: as JSON lines, as CSV, for TensorBoard."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_lines, write_whole
from ..pruning import PruneEvent
from .callbacks import Callback

if TYPE_CHECKING:
    from .loop import Trainer

__all__ = ["CSVLog", "JSONLog", "TensorBoard"]


class _Log(Callback):
    """Base of the logs: the first process writes for all."""

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._trainer: Trainer | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Begin, or go on with what there is."""
        if trainer.ranks.is_first:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._trainer = trainer
            self._begin(trainer)

    def _begin(self, trainer: Trainer) -> None:
        """What the process that writes does at the start."""


class JSONLog(_Log):
    """``metrics.jsonl``, a row for each epoch, and ``updates.jsonl``, one for each pruning update.

    Both are written whole, so that they never hold half a line, or an epoch that a resumed run has lost.

    Args:
        folder: where to; made when it is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.epochs, self.updates = self._folder / "metrics.jsonl", self._folder / "updates.jsonl"

    def _begin(self, trainer: Trainer) -> None:
        write_lines(self.epochs, trainer.history)
        write_lines(self.updates, trainer.updates)

    def on_checkpoint(self, state: dict[str, Any]) -> None:
        """Write down the updates, which a run that goes on from here has behind it."""
        if self._trainer is not None:
            write_lines(self.updates, self._trainer.updates)

    def on_epoch(self, row: dict[str, Any]) -> None:
        """Write down the epochs."""
        if self._trainer is not None:
            write_lines(self.epochs, self._trainer.history)


class CSVLog(_Log):
    """``metrics.csv``: a line for each epoch, a column for each figure; those of layers are called ``active/conv1``.

    Args:
        folder: where to; made when it is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self.file = self._folder / "metrics.csv"

    def _begin(self, trainer: Trainer) -> None:
        if trainer.history or self.file.exists():
            self._write(trainer)

    def on_epoch(self, row: dict[str, Any]) -> None:
        """Write down the epochs."""
        if self._trainer is not None:
            self._write(self._trainer)

    def _write(self, trainer: Trainer) -> None:
        rows = [dict(figures(row)) for row in trainer.history]
        text = io.StringIO(newline="")
        # a later row may have more layers: those in which nothing had run before
        writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        if rows:
            writer.writeheader()
            writer.writerows(rows)
        write_whole(self.file, text.getvalue().encode())


class TensorBoard(_Log):
    """The figures of each epoch and each pruning update as scalars over optimizer steps; those that a resumed run has
    lost are hidden.

    Args:
        folder: where the event files go; made when it is missing.

    Raises:
        ImportError: the package tensorboard is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard needs the package tensorboard: pip install 'sca_kernels[tensorboard]', or leave it out"
            ) from error
        self._make = SummaryWriter
        self._writer: SummaryWriter | None = None

    def _begin(self, trainer: Trainer) -> None:
        self._writer = self._make(str(self._folder), purge_step=trainer.step + 1)

    def on_epoch(self, row: dict[str, Any]) -> None:
        """Add the row's figures."""
        if self._writer is not None:
            for name, value in figures(row):
                if name not in ("epoch", "step"):
                    self._writer.add_scalar(name if "/" in name else f"epoch/{name}", value, row["step"])
            self._writer.flush()

    def on_update(self, event: PruneEvent) -> None:
        """Add what it did."""
        if self._writer is not None:
            for name in ("density", "share", "wanted", "pruned", "regrown"):
                self._writer.add_scalar(f"update/{name}", getattr(event, name), event.step)

    def on_end(self, trainer: Trainer) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def figures(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The names and numbers of a row; those of an object within it as ``object/name``."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}/{inner}", number) for inner, number in value.items())
        else:
            yield name, value
