"""The figures of a report, each as an ``<svg>`` element: narrow, labelled where the data end, in the page's colours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from ..units import count
from .runs import Rows, Run
from .svg import COLOURS, WIDTH, blank, inline, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

__all__ = ["SILENT", "Point", "channels", "firing", "scores", "trade_off", "training", "verdict"]

#: Firing rate below which a layer is called nearly silent.
SILENT = 1e-3

_ROW = 17.0  # units of height that a layer takes
_LETTERS = 24  # of the name of a layer, at most
_LINE, _LABEL = 11.0, 60.0  # units of height and width that a label takes


@dataclass(frozen=True)
class Point:
    """One network in the trade-off: ``x`` is its connectivity, or its SynOps per image."""

    label: str
    x: float
    accuracy: float
    dense: bool = False
    finished: bool = True


def trade_off(points: Sequence[Point], title: str, percent: bool) -> str:
    """Accuracy against what it costs: a disc for each run, a ring while it is not finished, a square where dense."""
    with style(title):
        figure, (axes,) = blank(180)
        for point in points:
            colour = COLOURS["muted" if point.dense else "kept"]
            axes.plot(
                100 * point.x if percent else point.x,
                100 * point.accuracy,
                "s" if point.dense else "o",
                color=colour,
                markersize=7,
                markerfacecolor=colour if point.finished else "none",
            )
        axes.set_title("test accuracy (%)")
        axes.set_xlabel("connectivity (% of the dense network's weights)" if percent else "SynOps per image")
        axes.grid()
        low, high = (100 * pick(point.accuracy for point in points) for pick in (min, max))
        room = 0.25 * max(high - low, 2.0)
        axes.set_ylim(low - room, min(high + room, 100 + room))
        axes.set_xlim(0, 109 if percent else 1.15 * max(point.x for point in points))
        if not percent:
            axes.xaxis.set_major_formatter(lambda value, _: count(value))
            axes.xaxis.set_major_locator(_few(5))
        places = axes.transData.transform([(100 * p.x if percent else p.x, 100 * p.accuracy) for p in points])
        heights = _apart(places)
        for point, (x, y), height in zip(points, places, heights, strict=True):
            left = x > 0.7 * WIDTH
            axes.annotate(
                point.label,
                (x, y),
                (-8 if left else 8, height - y),
                xycoords="figure points",
                textcoords="offset points",
                ha="right" if left else "left",
                va="center",
                color=COLOURS["muted" if point.dense else "ink"],
            )
        return inline(figure, title)


def training(run: Run, title: str) -> str:
    """Over the epochs: accuracy, the share that is left, and throughput."""
    with style(f"{run.name} {title}"):
        figure, (accuracy, share, speed) = blank(310, rows=(1, 1, 1), right=78)
        kept, cut, grey = COLOURS["kept"], COLOURS["cut"], COLOURS["muted"]
        for label, rows, colour in ("dense", run.dense, grey), ("this run", run.epochs, kept):
            _curve(accuracy, rows, "test_accuracy", label, colour, 100, "{:.2f}%")
            _curve(speed, rows, "samples_per_second", label, colour, 1, "{:,.0f}")
        _curve(share, run.epochs, "density", "channels", kept, 100, "{:.0f}%")
        _curve(share, run.epochs, "connectivity", "weights", cut, 100, "{:.0f}%")
        best = 100 * max(row["test_accuracy"] for row in (*run.epochs, *run.dense))
        ends = [100 * rows[-1]["test_accuracy"] for rows in (run.epochs, run.dense) if rows]
        accuracy.set_title("test accuracy (%)")
        accuracy.set_ylim(max(0, min(best - 30, *(end - 5 for end in ends))), min(102, best + 5))  # ends are compared
        share.set_title("active share of the dense network (%)")
        share.set_ylim(0, 112)
        speed.set_title("training throughput (samples/s)")
        speed.set_ylim(bottom=0)
        speed.yaxis.set_major_locator(_few(4))
        speed.set_xlabel("epoch")
        speed.set_xlim(0.5, max(2, len(run.epochs), len(run.dense)))
        speed.xaxis.set_major_locator(_few(8, integer=True))
        for axes in (accuracy, share, speed):
            _label_ends(axes)
        return inline(figure, title)


def channels(run: Run, title: str) -> str:
    """Active share of each group over the epochs, as steps, and what each update pruned and regrew."""
    totals = run.channels
    per_epoch = run.epochs[-1]["step"] / run.epochs[-1]["epoch"]
    with style(f"{run.name} {title}"):
        height = _ROW * len(totals)
        rows = (height, 60) if run.updates else (height,)
        figure, (above, *others) = blank(sum(rows) + (72 if run.updates else 46), rows, _room(totals), 58)
        steps = [update["step"] / per_epoch for update in run.updates]
        end = max([run.epochs[-1]["epoch"], *steps])
        for row, (name, total) in enumerate(totals.items()):
            after = [update["active"].get(name, total) for update in run.updates]
            shares = [1.0, *(value / total for value in after)]
            bottom = len(totals) - 1 - row
            above.stairs(
                [bottom + 0.86 * share for share in shares],
                [0, *steps, end],
                baseline=bottom,
                fill=True,
                color=COLOURS["kept"],
                alpha=0.8,
            )
            above.plot([0, end], [bottom, bottom], color=COLOURS["line"], linewidth=0.6)
            left = after[-1] if after else run.epochs[-1]["active"][name]
            _beside(above, bottom, f"{left} / {total}")
        _layers(above, totals)
        above.set_title("channels kept, by layer")
        above.set_xlim(0, end)
        for below in others:
            width = max(1, min(5, 150 / len(steps)))
            for sign, what, role in (1, "regrown", "kept"), (-1, "pruned", "cut"):
                counts = [sign * sum(group[what] for group in update["groups"].values()) for update in run.updates]
                below.vlines(steps, 0, counts, color=COLOURS[role], linewidth=width)
                place = {"xytext": (4, 0), "xycoords": "axes fraction", "textcoords": "offset points"}
                below.annotate(what, (1, 0.5 + 0.25 * sign), color=COLOURS[role], va="center", **place)
            below.axhline(0, color=COLOURS["line"], linewidth=0.8)
            below.set_title("channels per update")
            low, high = below.get_ylim()
            below.set_ylim(min(low, -1), max(high, 1))
            below.yaxis.set_major_locator(_few(4, integer=True))
            below.yaxis.set_major_formatter(lambda value, _: f"{abs(value):,.0f}")
        figure.axes[-1].set_xlabel("epoch")
        return inline(figure, title)


def scores(run: Run, title: str, update: dict[str, Any]) -> str:
    """Histograms of the scores at one of the run's updates, a row for each group; a tick where it was cut."""
    groups = {name: group["scores"] for name, group in update["groups"].items()}
    spread = {name: score for name, score in groups.items() if score["low"] is not None}
    with style(f"{run.name} {title}"):
        figure, (axes,) = blank(1.5 * _ROW * len(groups) + 46, left=_room(groups), right=58)
        left = min((score["low"] for score in spread.values()), default=0.0)
        right = max((score["high"] for score in spread.values()), default=1.0)
        room = 0.03 * (right - left) or 0.03
        for row, (name, score) in enumerate(groups.items()):
            bottom = len(groups) - 1 - row
            kept, cut = sum(score["kept"]), sum(score["pruned"])
            _beside(axes, bottom, f"{kept} / {kept + cut}")
            axes.plot([left, right], [bottom, bottom], color=COLOURS["line"], linewidth=0.6)
            if name not in spread:
                continue
            tallest = max(k + c for k, c in zip(score["kept"], score["pruned"], strict=True)) or 1
            low, high = score["low"], score["high"]
            if high == low:
                low, high = low - room / 3, low + room / 3
            bins = len(score["kept"])
            edges = [low + (high - low) * at / bins for at in range(bins + 1)]
            below = [bottom + 0.86 * k / tallest for k in score["kept"]]
            above = [b + 0.86 * c / tallest for b, c in zip(below, score["pruned"], strict=True)]
            axes.stairs(below, edges, baseline=bottom, fill=True, color=COLOURS["kept"])
            if cut:
                axes.stairs(above, edges, baseline=below, fill=True, color=COLOURS["cut"])
            if cut and score["cut"] is not None:
                axes.plot([score["cut"]] * 2, [bottom, bottom + 0.95], color=COLOURS["ink"], linewidth=1.2)
        _layers(axes, groups)
        axes.set_xlim(left - room, right + room)
        axes.set_title("channels by score, by layer")
        axes.set_xlabel("score")
        axes.xaxis.set_major_locator(_few(6))
        return inline(figure, title)


def firing(run: Run, title: str) -> str:
    """Firing rate of each neuron layer in the last epoch; what is dead or nearly so is called that."""
    rates = run.epochs[-1]["firing_rates"]
    with style(f"{run.name} {title}"):
        figure, (axes,) = blank(_ROW * len(rates) + 46, left=_room(rates))
        rows = range(len(rates) - 1, -1, -1)
        axes.barh([row + 0.4 for row in rows], [100 * rate for rate in rates.values()], 0.6, color=COLOURS["kept"])
        right = 130 * max([*rates.values(), SILENT])
        for row, rate in zip(rows, rates.values(), strict=True):
            state = verdict(rate)
            axes.annotate(
                f"{_rate(rate)} {state}".strip(),
                (100 * rate, row + 0.4),
                (4, 0),
                textcoords="offset points",
                va="center",
                color=COLOURS["cut" if state else "ink"],
                weight="bold" if state else "normal",
            )
        _layers(axes, rates)
        axes.set_xlim(0, right)
        axes.set_title("firing rate, by layer")
        axes.set_xlabel("% of neurons that fire in a time step")
        axes.xaxis.set_major_locator(_few(6))
        return inline(figure, title)


def verdict(rate: float) -> str:
    """What to call a layer that fires so rarely; nothing where it fires."""
    return "dead" if rate == 0 else "nearly silent" if rate < SILENT else ""


def _rate(rate: float) -> str:
    return f"{rate:.1%}" if rate >= SILENT else f"{100 * rate:.1g}%"


def _curve(axes: Axes, rows: Rows, field: str, label: str, colour: str, factor: float, form: str) -> None:
    """A field over the epochs, where there are any; its label, with the last value, waits for :func:`_label_ends`."""
    axes.grid(axis="y")
    if rows:
        x, y = [row["epoch"] for row in rows], [factor * row[field] for row in rows]
        axes.plot(x, y, color=colour, label=f"{label} {form.format(y[-1])}", marker="o", markersize=3, markevery=[-1])


def _label_ends(axes: Axes) -> None:
    """Write each line's label beside its last point, in its colour."""
    ends = [(line.get_xdata()[-1], line.get_ydata()[-1]) for line in axes.lines]
    places = axes.transData.transform(ends)
    heights = _apart(places)
    for line, (x, _), height in zip(axes.lines, places, heights, strict=True):
        axes.annotate(
            line.get_label(),
            (x, height),
            (5, 0),
            xycoords="figure points",
            textcoords="offset points",
            va="center",
            color=line.get_color(),
            annotation_clip=False,
        )


def _apart(places: Sequence[tuple[float, float]]) -> list[float]:
    """Heights of labels at these places, moved as little as keeps neighbours a line apart."""
    order = sorted(range(len(places)), key=lambda at: places[at][1])
    heights = [float(y) for _, y in places]
    for _ in order:
        for low, high in combinations(order, 2):
            lack = _LINE - (heights[high] - heights[low])
            if lack > 0 and abs(places[high][0] - places[low][0]) < _LABEL:
                heights[low] -= lack / 2
                heights[high] += lack / 2
    return heights


def _room(names: Iterable[str]) -> float:
    """Units that the longest name takes."""
    return 8 + 5.2 * max(len(_short(name)) for name in names)


def _short(name: str) -> str:
    """A name that leaves room for its row: the ends of a longer one, in signs that can be drawn."""
    shown = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in name)
    half = _LETTERS // 2
    return shown if len(shown) <= _LETTERS else f"{shown[: half - 1]}\N{HORIZONTAL ELLIPSIS}{shown[-half:]}"


def _layers(axes: Axes, names: Sequence[str] | dict[str, Any]) -> None:
    """Rows of 1, the first name on top."""
    axes.set_yticks([len(names) - 1 - row + 0.4 for row in range(len(names))], [_short(name) for name in names])
    axes.set_ylim(-0.05, len(names))
    axes.tick_params("y", length=0, labelcolor=COLOURS["ink"])
    axes.spines["left"].set_visible(False)


def _beside(axes: Axes, bottom: float, text: str) -> None:
    """Write to the right of a row."""
    axes.annotate(
        text,
        (1, bottom + 0.4),
        (4, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
        annotation_clip=False,
    )


def _few(count: int, integer: bool = False) -> MaxNLocator:
    """Ticks at round numbers, ``count`` at most."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count, integer=integer)
