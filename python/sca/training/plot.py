"""The picture of a run: accuracy, density and speed over training time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_whole
from ..pictures import LIGHT, drawing, png
from ..report.runs import Rows, accuracies
from .config import TrainConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RUN, _SECOND, _DENSE, _TEST = LIGHT["kept"], LIGHT["cut"], LIGHT["dense"], LIGHT["ink"]


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

    figure = new_figure(figsize=(8, 7), layout="constrained")
    figure.suptitle(f"{config.model} on {config.data}, T = {config.time_steps}, {len(history)} epochs")
    accuracy, share, speed = figure.subplots(3, sharex=True)

    trained = [row["train_accuracy"] for row in history]
    tested, reference = accuracies(history), accuracies(dense)
    curves = [(reference.split, reference.rows, reference.values, ", dense reference", _DENSE, "-")]
    curves.append(("train", history, trained, "", _RUN, ":"))
    curves.append((tested.split, tested.rows, tested.values, "", _RUN, "-"))
    if tested.split == "validation" and "test_accuracy" in history[-1]:
        curves.append(("test", history[-1:], [history[-1]["test_accuracy"]], "", _TEST, "-"))
    curves = [curve for curve in curves if curve[1]]
    for split, rows, values, of, colour, style in curves:
        _curve(accuracy, rows, values, f"{split}{of}: {values[-1]:.2%} at the end", colour, style)
    # the first epochs may fall below the picture: the ends are what is compared
    ends = [values[-1] for _, _, values, *_ in curves]
    best = max(value for split, _, values, *_ in curves if split != "train" or len(curves) == 1 for value in values)
    accuracy.set_ylim(max(0.0, min(best - 0.25, min(ends) - 0.05)), min(1.01, max(best, *ends) + 0.1))
    accuracy.set_title("accuracy")

    for field, what, colour in ("density", "channels", _RUN), ("connectivity", "weights", _SECOND):
        _curve(share, history, [row[field] for row in history], f"{field}: active {what}", colour)
    share.set_title("share of the dense network")
    share.set_ylim(0, 1.05)
    for axes in (accuracy, share):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))

    for rows, label, colour in (dense, "dense reference", _DENSE), (history, "this run", _RUN):
        if rows:
            _curve(speed, rows, [row["samples_per_second"] for row in rows], label, colour)
    speed.set_title("training speed (samples/s)")
    speed.set_ylim(bottom=0)
    speed.set_xlabel("training time (s)")
    speed.set_xlim(left=0)
    for axes in (accuracy, share, speed):
        axes.grid()
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))  # beside the curves, wherever these go
    return figure


def _curve(axes: Axes, rows: Rows, values: Sequence[float], label: str, colour: str, style: str = "-") -> None:
    """Values over the rows' training time, each marked: a run of one epoch is a curve of one point."""
    seconds = [row["seconds"] for row in rows]
    axes.plot(seconds, values, style, color=colour, label=label, marker="o", markersize=3)
