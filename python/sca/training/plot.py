"""The picture of a run: accuracy, density and speed over training time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_whole
from ..pictures import drawing, png
from .config import TrainConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]

_RUN, _SECOND, _DENSE = "#1b6ca8", "#e08a1e", "#8a8a8a"


def plot(path: Path, history: Rows, dense: Rows, config: TrainConfig) -> None:
    """Write the PNG.

    Args:
        path: the file.
        history: the run's rows, as logged.
        dense: those of its dense reference; empty if there is none.
        config: for the title.

    Raises:
        ImportError: matplotlib is missing.
    """
    with drawing() as figure:
        write_whole(path, png(_drawn(figure, history, dense, config)))


def _drawn(new_figure: type[Figure], history: Rows, dense: Rows, config: TrainConfig) -> Figure:
    from matplotlib.ticker import PercentFormatter

    figure = new_figure(figsize=(8, 9), layout="constrained", dpi=120)
    figure.suptitle(f"{config.model} on {config.data}, T = {config.time_steps}, {len(history)} epochs")
    accuracy, density, speed = figure.subplots(3, sharex=True)

    def curve(axes, rows: Rows, field: str, label: str, color: str, style: str = "-") -> None:
        seconds = [row["seconds"] for row in rows]
        # markers: a run of one epoch is a curve of one point
        axes.plot(seconds, [row[field] for row in rows], style, color=color, label=label, marker="o", markersize=3)

    def at_end(rows: Rows, field: str) -> str:
        return f"{rows[-1][field]:.2%} at the end"

    split = "test" if "test_accuracy" in history[0] else "validation"
    field = f"{split}_accuracy"
    if dense:
        curve(accuracy, dense, field, f"{split}, dense reference: {at_end(dense, field)}", _DENSE)
        curve(speed, dense, "samples_per_second", "dense reference", _DENSE)
    curve(accuracy, history, "train_accuracy", f"train: {at_end(history, 'train_accuracy')}", _RUN, ":")
    curve(accuracy, history, field, f"{split}: {at_end(history, field)}", _RUN)
    curve(density, history, "density", "density: active channels", _RUN)
    curve(density, history, "connectivity", "connectivity: active weights", _SECOND)
    curve(speed, history, "samples_per_second", "this run", _RUN)

    accuracy.set_ylabel("accuracy")
    # the first epochs may fall below the picture: the ends are what is compared
    best = max(row[field] for row in [*history, *dense])
    lowest = min(history[-1]["train_accuracy"], *(rows[-1][field] for rows in (history, dense) if rows))
    accuracy.set_ylim(max(0.0, min(best - 0.25, lowest - 0.05)), min(1.01, best + 0.1))
    density.set_ylabel("share of the dense network")
    density.set_ylim(0, 1.05)
    for axes in (accuracy, density):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    speed.set_ylabel("training speed (samples/s)")
    speed.set_ylim(bottom=0)
    speed.set_xlabel("training time (s)")
    speed.set_xlim(left=0)
    for axes in (accuracy, density, speed):
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, loc="best")
        axes.spines[["top", "right"]].set_visible(False)
    return figure
