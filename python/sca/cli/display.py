"""Live view of a run: a progress bar on a terminal, and one line per epoch everywhere."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..training import Trainer


class Display:
    """Observer of a run, and a context manager that turns Ctrl-C and SIGTERM into a request to stop.

    Args:
        console: what to write to.
    """

    def __init__(self, console: Console) -> None:
        self.stop_requested = False
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[figures]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._epochs = 0

    def __enter__(self) -> Display:
        self._handlers = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop_requested:  # asked twice: do not wait for the step to end
            raise KeyboardInterrupt
        self.stop_requested = True

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()

    def on_start(self, trainer: Trainer) -> None:
        """Say what is trained, and start a bar for it."""
        config = trainer.config
        self._epochs = config.epochs
        what = "dense" if trainer.scheduler is None else f"to density {config.density:g} of {config.target}"
        parameters = sum(p.numel() for p in trainer.model.parameters())
        begin = f", from epoch {trainer.epoch + 1}" if trainer.step else ""
        self._console.print(
            f"{config.model} on {config.data}, {what}: {parameters:,} parameters, {config.epochs} epochs{begin}",
            soft_wrap=True,
        )
        self.start_bar(trainer)

    def start_bar(self, trainer: Trainer) -> None:
        """A new bar for a run, in place of an earlier one."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(
            "", total=trainer.config.epochs * trainer.steps_per_epoch, completed=trainer.step, figures=""
        )
        self._bar.start()

    def on_batch(self, trainer: Trainer) -> None:
        """Move the bar."""
        self._bar.update(
            self._task,
            description=f"epoch {trainer.epoch + 1}/{self._epochs}",
            completed=trainer.step,
            figures=_figures({"density": trainer.density, **trainer.sums.averages}),
        )

    def on_epoch(self, row: dict[str, Any]) -> None:
        """Print the epoch's line."""
        self._console.print(f"epoch {row['epoch']:>3}/{self._epochs}  {_figures(row)}", soft_wrap=True)


def _figures(row: dict[str, Any]) -> str:
    test = f"  test {row['test_accuracy']:.2%}" if "test_accuracy" in row else ""
    return (
        f"loss {row['loss']:.3f}  train {row['train_accuracy']:.1%}{test}  density {row['density']:.0%}"
        f"  firing {row['firing_rate']:.1%}  {row['samples_per_second']:,.0f} samples/s"
    )
