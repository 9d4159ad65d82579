"""Live view of a run: a progress bar on a terminal, and one line per epoch everywhere."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ..training import Callback, Trainer


class Display(Callback):
    """Callback of a run, and a context manager that turns signals into requests: Ctrl-C, SIGTERM and SIGHUP to stop,
    SIGUSR1 to write a checkpoint and go on. A SIGHUP that the process was told to ignore (nohup) stays ignored.

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
        wanted = {
            signal.SIGINT: self._stop,
            signal.SIGTERM: self._stop,
            signal.SIGHUP: self._stop,
            signal.SIGUSR1: self._ask,
        }
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            del wanted[signal.SIGHUP]
        self._handlers = {number: signal.signal(number, handler) for number, handler in wanted.items()}
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

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.checkpoint_requested = True

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
        if trainer.former_epochs not in (None, trainer.epochs):
            begin += (
                f"; it was to have {trainer.former_epochs}: learning rate and pruning plan are those of the longer run"
                " from here on"
            )
        self._console.print(
            f"{config.model} on {config.data}, {what}: {parameters:,} parameters, {config.epochs} epochs{begin}",
            soft_wrap=True,
        )
        if trainer.dataset.told:
            self._console.print(trainer.dataset.told, soft_wrap=True)
        self.start_bar(trainer)

    def start_bar(self, trainer: Trainer) -> None:
        """A new bar for a run, in place of an earlier one."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(
            "", total=trainer.epochs * trainer.steps_per_epoch, completed=trainer.step, figures=""
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
    measured = "".join(
        f"  {name} {row[f'{name}_accuracy']:.2%}" for name in ("validation", "test") if f"{name}_accuracy" in row
    )
    return (
        f"loss {row['loss']:.3f}  train {row['train_accuracy']:.1%}{measured}  density {row['density']:.0%}"
        f"  firing {row['firing_rate']:.1%}  {row['samples_per_second']:,.0f} samples/s"
    )
