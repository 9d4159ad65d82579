"""The picture of a run: accuracy, density and speed over training time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .config import TrainConfig

Rows = list[dict[str, Any]]

_RUN, _SECOND, _DENSE = "#1b6ca8", "#e08a1e", "#8a8a8a"


def plot(path: Path, history: Rows, dense: Rows, config: TrainConfig) -> None:
    """Write the PNG.

    Args:
        path: the file.
        history: the run's rows, as logged.
        dense: those of its dense reference; empty if there is none.
        config: for the title.
    """
    from matplotlib.figure import Figure  # half a second that only the end of a run needs
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(8, 9), layout="constrained", dpi=120)
    figure.suptitle(f"{config.model} on {config.data}, T = {config.time_steps}, {len(history)} epochs")
    accuracy, density, speed = figure.subplots(3, sharex=True)

    def curve(axes, rows: Rows, field: str, label: str, color: str, style: str = "-") -> None:
        seconds = [row["seconds"] for row in rows]
        # a curve of one point is still to be seen
        axes.plot(seconds, [row[field] for row in rows], style, color=color, label=label, marker="o", markersize=3)

    if dense:
        curve(accuracy, dense, "test_accuracy", "test, dense reference", _DENSE)
        curve(speed, dense, "samples_per_second", "dense reference", _DENSE)
    curve(accuracy, history, "train_accuracy", "train", _RUN, ":")
    curve(accuracy, history, "test_accuracy", "test", _RUN)
    curve(density, history, "density", "density: active channels", _RUN)
    curve(density, history, "connectivity", "connectivity: active weights", _SECOND)
    curve(speed, history, "samples_per_second", "this run", _RUN)

    accuracy.set_ylabel("accuracy")
    worst = min(row["test_accuracy"] for row in [*history, *dense])
    accuracy.set_ylim(max(0.0, min(0.9, worst - 0.05)), 1.005)
    density.set_ylabel("share of the dense network")
    density.set_ylim(0, 1.05)
    for axes in (accuracy, density):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    speed.set_ylabel("training speed (samples/s)")
    speed.set_ylim(bottom=0)
    speed.set_xlabel("training time (s)")
    speed.set_xlim(left=0)
    for axes in (accuracy, density, speed):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
