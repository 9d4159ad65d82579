"""The figures of a report, each as an ``<svg>`` element: narrow, labelled where the data end, in the page's colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..pictures import LIGHT as COLOURS
from ..units import count
from .axes import ROW, apart, beside, few, label_ends, layers, room
from .channels import Churn, Overlap, recorded
from .runs import Rows, Run, accuracies
from .svg import WIDTH, blank, inline, stencil, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "SATURATED",
    "SILENT",
    "Point",
    "agreement",
    "channels",
    "churned",
    "firing",
    "overlap",
    "ranks",
    "recording",
    "scores",
    "trade_off",
    "training",
    "verdict",
]

#: Firing rate below which a layer is called nearly silent.
SILENT = 1e-3
#: Percentile of the counts of pixels with events, from which on a recording's pixels are of full colour.
SATURATED = 95


@dataclass(frozen=True)
class Point:
    """One network in the trade-off: ``x`` is its connectivity, or its SynOps per sample."""

    label: str
    x: float
    accuracy: float
    dense: bool = False
    finished: bool = True


def trade_off(points: Sequence[Point], title: str, percent: bool) -> str:
    """Accuracy against what it costs: a disc for each run, a ring while it is not finished, a square where dense."""
    with style(title):
        figure, (axes,) = blank(180, right=16)
        for point in points:
            colour = COLOURS["dense" if point.dense else "kept"]
            axes.plot(
                100 * point.x if percent else point.x,
                100 * point.accuracy,
                "s" if point.dense else "o",
                color=colour,
                markersize=7,
                markerfacecolor=colour if point.finished else "none",
            )
        axes.set_title("test accuracy (%)")
        axes.set_xlabel("connectivity (% of the dense network's weights)" if percent else "SynOps per sample")
        axes.grid()
        low, high = (100 * pick(point.accuracy for point in points) for pick in (min, max))
        margin = 0.25 * max(high - low, 2.0)
        axes.set_ylim(low - margin, min(high + margin, 100 + margin))
        axes.set_xlim(0, 109 if percent else 1.15 * max(point.x for point in points))
        if not percent:
            axes.xaxis.set_major_formatter(lambda value, _: count(value))
            axes.xaxis.set_major_locator(few(5))
        places = axes.transData.transform([(100 * p.x if percent else p.x, 100 * p.accuracy) for p in points])
        heights = apart(places)
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
                color=COLOURS["dense" if point.dense else "ink"],
            )
        return inline(figure, title)


def training(run: Run, title: str) -> str:
    """Over the epochs: accuracy, the share that is left, and throughput."""
    runs = [("dense", run.dense, COLOURS["dense"]), ("this run", run.epochs, COLOURS["kept"])]
    known = {label: accuracies(rows) for label, rows, _ in runs}
    splits = list(dict.fromkeys(told.split for told in reversed(known.values()) if told.values))
    with style(f"{run.name} {title}"):
        figure, (accuracy, share, speed) = blank(310, rows=(1, 1, 1), right=84 if len(splits) < 2 else 96)
        for label, rows, colour in runs:
            told = known[label]
            name = label if len(splits) < 2 else told.split if label == "this run" else f"{label}, {told.split}"
            _curve(accuracy, told.rows, told.values, name, colour, 100, "{:.2f}%")
            _curve(speed, rows, [row["samples_per_second"] for row in rows], label, colour, 1, "{:,.0f}")
        last = run.epochs[-1]
        if known["this run"].split == "validation" and "test_accuracy" in last:
            _curve(accuracy, [last], [last["test_accuracy"]], "test", COLOURS["ink"], 100, "{:.2f}%")
        for field, colour in ("density", COLOURS["kept"]), ("connectivity", COLOURS["cut"]):
            _curve(share, run.epochs, [row[field] for row in run.epochs], field, colour, 100, "{:.0f}%")
        accuracy.set_title(f"{' or '.join(splits) or 'test'} accuracy (%)")
        if splits:
            best = 100 * max(value for told in known.values() for value in told.values)
            ends = [line.get_ydata()[-1] for line in accuracy.lines]  # which are what is compared
            accuracy.set_ylim(max(0, min(best - 30, *(end - 5 for end in ends))), min(102, best + 5))
        share.set_title("active share of the dense network (%)")
        share.set_ylim(0, 112)
        speed.set_title("training throughput (samples/s)")
        speed.set_ylim(bottom=0)
        speed.yaxis.set_major_locator(few(4))
        speed.set_xlabel("epoch")
        speed.set_xlim(0.5, 1.02 * max(2, len(run.epochs), len(run.dense)))
        speed.xaxis.set_major_locator(few(8, integer=True))
        for axes in (accuracy, share, speed):
            label_ends(axes)
        return inline(figure, title)


def channels(run: Run, title: str) -> str:
    """Active share of each group over the epochs, as steps; and, where the log does not tell which channels, how many
    each update pruned and regrew."""
    totals = run.channels
    per_epoch = _steps_per_epoch(run)
    counted = bool(run.updates) and not recorded(run.updates)  # else churned() shows them
    with style(f"{run.name} {title}"):
        height = ROW * len(totals)
        rows = (height, 60) if counted else (height,)
        figure, (above, *others) = blank(sum(rows) + (72 if counted else 46), rows, room(totals), 58)
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
            beside(above, bottom, f"{left} / {total}")
        layers(above, totals)
        above.set_title("channels kept, by layer")
        above.set_xlim(0, end)
        for below in others:
            pruned, regrown = (
                [sum(group[what] for group in update["groups"].values()) for update in run.updates]
                for what in ("pruned", "regrown")
            )
            _counts(below, steps, regrown, pruned)
        figure.axes[-1].set_xlabel("epoch")
        return inline(figure, title)


def churned(run: Run, title: str, churn: Sequence[Churn]) -> str:
    """What each update regrew and pruned, and how much of the pruned came back at a later one."""
    with style(f"{run.name} {title}"):
        figure, (counts, shares) = blank(220, rows=(1.2, 1), right=84)
        epochs = [one.step / _steps_per_epoch(run) for one in churn]
        returned = [one.returned for one in churn]
        _counts(counts, epochs, [one.regrown for one in churn], [one.pruned for one in churn], returned)
        told = [(at, 100 * one.returned / one.pruned) for at, one in zip(epochs, churn, strict=True) if one.pruned]
        shares.plot([at for at, _ in told], [share for _, share in told], color=COLOURS["kept"], marker="o")
        shares.set_title("of the channels pruned, came back later (%)")
        shares.set_ylim(-2, 102)
        shares.grid(axis="y")
        shares.set_xlim(0, max([run.epochs[-1]["epoch"], *epochs]))
        shares.set_xlabel("epoch")
        return inline(figure, title)


def ranks(run: Run, title: str, correlations: dict[str, list[float | None]]) -> str:
    """A step for the rank correlation of a group's scores at each update with those at the next, a row for each group:
    upward in one colour, below 0 in the other."""
    edges = [update["step"] / _steps_per_epoch(run) for update in run.updates]
    with style(f"{run.name} {title}"):
        figure, (axes,) = blank(ROW * len(correlations) + 46, left=room(correlations), right=40)
        for row, values in enumerate(correlations.values()):
            bottom = len(correlations) - 1 - row
            for sign, role in (1, "kept"), (-1, "cut"):
                heights = [bottom + 0.86 * max(0.0, sign * (value or 0.0)) for value in values]
                axes.stairs(heights, edges, baseline=bottom, fill=True, color=COLOURS[role], alpha=0.8)
            axes.plot([edges[0], edges[-1]], [bottom, bottom], color=COLOURS["line"], linewidth=0.6)
            known = sorted(value for value in values if value is not None)
            beside(axes, bottom, f"{known[len(known) // 2]:.2f}" if known else "")
        layers(axes, correlations)
        axes.set_title("rank correlation with the next update, by layer")
        axes.set_xlim(0, max(run.epochs[-1]["epoch"], edges[-1]))
        axes.set_xlabel("epoch")
        return inline(figure, title)


def overlap(title: str, pairs: Sequence[dict[str, Overlap]]) -> str:
    """Mean Jaccard overlap of active sets over pairs of runs, a bar for each group; a line from the least to the most
    where there are several pairs, a tick where random sets would be."""
    names = list(pairs[0])
    with style(title):
        figure, (axes,) = blank(ROW * len(names) + 46, left=room(names), right=58)
        for row, name in enumerate(names):
            at = len(names) - 1 - row + 0.4
            values = [pair[name].measured for pair in pairs]
            mean, chance = (sum(v) / len(pairs) for v in (values, [pair[name].chance for pair in pairs]))
            axes.barh(at, mean, 0.6, color=COLOURS["kept"], alpha=0.8)
            if len(pairs) > 1:
                axes.plot([min(values), max(values)], [at, at], color=COLOURS["ink"], linewidth=1)
            axes.plot([chance, chance], [at - 0.42, at + 0.42], color=COLOURS["cut"], linewidth=2)
            beside(axes, at - 0.4, f"{mean:.2f} ({chance:.2f})")
        layers(axes, names)
        axes.set_xlim(0, 1)
        axes.set_title("overlap of active channels, by layer")
        axes.set_xlabel("Jaccard: shared / all active in either")
        return inline(figure, title)


def agreement(title: str, keys: Sequence[str], overlaps: dict[tuple[str, str], float]) -> str:
    """The overlap of each two runs as a matrix, the stronger the colour the more."""
    with style(title):
        from matplotlib.patches import Rectangle

        size = min(26.0, (WIDTH - 60) / len(keys))
        figure, (axes,) = blank(size * len(keys) + 46, left=40, right=WIDTH - 40 - size * len(keys))
        for row, first in enumerate(keys):
            for column, second in enumerate(keys[: row + 1]):
                value = 1.0 if first == second else overlaps[second, first]
                place = column - 0.48, row - 0.48
                colour = COLOURS["line" if first == second else "kept"]
                axes.add_patch(Rectangle(place, 0.96, 0.96, color=colour, alpha=0.1 + 0.6 * value, linewidth=0))
                if first != second:
                    axes.annotate(f"{value:.2f}".removeprefix("0"), (column, row), ha="center", va="center")
        axes.set_xlim(-0.5, len(keys) - 0.5)
        axes.set_ylim(len(keys) - 0.5, -0.5)
        for axis in axes.xaxis, axes.yaxis:
            axis.set_ticks(range(len(keys)), keys)
            axis.set_tick_params(length=0, labelcolor=COLOURS["ink"])
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.set_title("overlap of all layers together")
        return inline(figure, title)


def scores(run: Run, title: str, update: dict[str, Any]) -> str:
    """Histograms of the scores at one of the run's updates, a row for each group; a tick where it was cut."""
    groups = {name: group["scores"] for name, group in update["groups"].items()}
    spread = {name: score for name, score in groups.items() if score["low"] is not None}
    with style(f"{run.name} {title}"):
        figure, (axes,) = blank(1.5 * ROW * len(groups) + 46, left=room(groups), right=58)
        left = min((score["low"] for score in spread.values()), default=0.0)
        right = max((score["high"] for score in spread.values()), default=1.0)
        margin = 0.03 * (right - left) or 0.03
        for row, (name, score) in enumerate(groups.items()):
            bottom = len(groups) - 1 - row
            kept, cut = sum(score["kept"]), sum(score["pruned"])
            beside(axes, bottom, f"{kept} / {kept + cut}")
            axes.plot([left, right], [bottom, bottom], color=COLOURS["line"], linewidth=0.6)
            if name not in spread:
                continue
            tallest = max(k + c for k, c in zip(score["kept"], score["pruned"], strict=True)) or 1
            low, high = score["low"], score["high"]
            if high == low:
                low, high = low - margin / 3, low + margin / 3
            bins = len(score["kept"])
            edges = [low + (high - low) * at / bins for at in range(bins + 1)]
            below = [bottom + 0.86 * k / tallest for k in score["kept"]]
            above = [b + 0.86 * c / tallest for b, c in zip(below, score["pruned"], strict=True)]
            axes.stairs(below, edges, baseline=bottom, fill=True, color=COLOURS["kept"])
            if cut:
                axes.stairs(above, edges, baseline=below, fill=True, color=COLOURS["cut"])
            if cut and score["cut"] is not None:
                axes.plot([score["cut"]] * 2, [bottom, bottom + 0.95], color=COLOURS["ink"], linewidth=1.2)
        layers(axes, groups)
        axes.set_xlim(left - margin, right + margin)
        axes.set_title("channels by score, by layer")
        axes.set_xlabel("score")
        axes.xaxis.set_major_locator(few(6))
        return inline(figure, title)


def firing(run: Run, title: str) -> str:
    """Firing rate of each neuron layer in the last epoch; what is dead or nearly so is called that."""
    rates = run.epochs[-1]["firing_rates"]
    with style(f"{run.name} {title}"):
        figure, (axes,) = blank(ROW * len(rates) + 46, left=room(rates))
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
        layers(axes, rates)
        axes.set_xlim(0, right)
        axes.set_title("firing rate, by layer")
        axes.set_xlabel("% of neurons that fire in a time step")
        axes.xaxis.set_major_locator(few(6))
        return inline(figure, title)


def verdict(rate: float) -> str:
    """What to call a layer that fires so rarely; nothing where it fires."""
    return "dead" if rate == 0 else "nearly silent" if rate < SILENT else ""


def recording(run: Run, title: str) -> str:
    """The frames of the run's recording, at most five side by side."""
    shown = run.recording
    total, high, wide, _ = shown.frames.shape
    rows = math.ceil(total / 5)
    columns = math.ceil(total / rows)
    across = (WIDTH + 6) / columns  # with a gap of 8; beside the first and the last picture is 1
    scale = (across - 8) / max(high, wide)
    down = scale * high + 20
    corners = [(1 + at % columns * across, 30 + at // columns * down) for at in range(total)]
    salt = f"{run.name} {title}"
    with style(salt):
        from matplotlib.patches import Rectangle

        end = 16 + rows * down
        figure, (axes,) = blank(end + 30, left=0, right=0)
        axes.set_axis_off()
        axes.set_xlim(0, WIDTH)
        axes.set_ylim(end, 16)  # as in the page: units, downward
        axes.set_title("events, by time step")
        for step, (left, top) in zip(shown.steps, corners, strict=True):
            axes.annotate(f"t = {step}", (left, top - 3), color=COLOURS["muted"])
            frame = Rectangle((left, top), scale * wide, scale * high, fill=False, edgecolor=COLOURS["line"])
            axes.add_patch(frame)
        for left, name, role in (1, "ON", "kept"), (36, "OFF", "cut"):
            axes.annotate(f"\N{BLACK SQUARE} {name}", (left, end + 12), color=COLOURS[role], annotation_clip=False)
        painted = zip(("cut", "kept"), _opacities(shown.frames), strict=True)
        behind = "".join(stencil(role, salt, corners, opacities, scale) for role, opacities in painted)
        return inline(figure, title, behind)


def _opacities(frames: np.ndarray) -> np.ndarray:
    """Opacities of the colour of OFF and of that of ON painted over it, uint8 [2, T, H, W]: a pixel is as strong as it
    has events, and each colour has its share of it."""
    off, on = np.moveaxis(frames.astype(np.int64), -1, 0)
    counts = off + on
    full = np.percentile(counts[counts > 0], SATURATED) if counts.any() else 1
    strength = np.minimum(counts / full, 1) / np.maximum(counts, 1)  # of one event
    above = strength * on
    below = strength * off / np.where(off, 1 - above, 1)  # ON lets 1 - above of it through
    return np.round(255 * np.stack([below, above])).astype(np.uint8)


def _steps_per_epoch(run: Run) -> float:
    return run.epochs[-1]["step"] / run.epochs[-1]["epoch"]


def _rate(rate: float) -> str:
    return f"{rate:.1%}" if rate >= SILENT else f"{100 * rate:.1g}%"


def _curve(axes: Axes, rows: Rows, values: Sequence[float], label: str, colour: str, factor: float, form: str) -> None:
    """Values over the epochs of ``rows``, where there are any; the label, with the last value, waits for
    :func:`label_ends`."""
    axes.grid(axis="y")
    if rows:
        x, y = [row["epoch"] for row in rows], [factor * value for value in values]
        axes.plot(x, y, color=colour, label=f"{label} {form.format(y[-1])}", marker="o", markersize=3, markevery=[-1])


def _counts(
    axes: Axes,
    epochs: Sequence[float],
    regrown: Sequence[int],
    pruned: Sequence[int],
    returned: Sequence[int] | None = None,
) -> None:
    """Lines of what each update regrew, upward, and pruned, downward; what of that came back later is paler."""
    width = max(1, min(5, 150 / max(1, len(epochs))))
    lost = pruned if returned is None else [all_of_it - back for all_of_it, back in zip(pruned, returned, strict=True)]
    axes.vlines(epochs, 0, regrown, color=COLOURS["kept"], linewidth=width)
    axes.vlines(epochs, 0, [-count for count in lost], color=COLOURS["cut"], linewidth=width)
    if returned is not None:
        ends = [-count for count in pruned]
        axes.vlines(epochs, ends, [-count for count in lost], color=COLOURS["cut"], linewidth=width, alpha=0.45)
    labels = [("regrown", 0.8, "kept", 1.0), ("pruned", 0.3, "cut", 1.0)]
    if returned is not None:
        labels[1:] = [("pruned for good", 0.38, "cut", 1.0), ("until later", 0.16, "cut", 0.6)]
    for text, height, role, alpha in labels:
        place = {"xytext": (4, 0), "xycoords": "axes fraction", "textcoords": "offset points"}
        axes.annotate(text, (1, height), color=COLOURS[role], alpha=alpha, va="center", **place)
    axes.axhline(0, color=COLOURS["line"], linewidth=0.8)
    axes.set_title("channels per update")
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -1), max(high, 1))
    axes.yaxis.set_major_locator(few(4, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):,.0f}")
