"""The table's result: mean and spread over seeds of each cell, as JSON, as tables of a terminal and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from ...bench.conditions import conditions
from ...files import write_whole
from ...pictures import LIGHT, MARKERS, SERIES, drawing, png
from .cells import DENSE, Cell
from .config import Table1Config
from .published import PUBLISHED, Published

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

#: Published accuracies are drawn where our best is no farther below them; else they would leave no room for ours.
_FAR = 0.1


def results(config: Table1Config, finished: Iterable[tuple[Cell, dict[str, Any]]], command: str) -> dict[str, Any]:
    """Everything that is known, as plain values.

    Args:
        config: the table.
        finished: cells and the summaries that their runs left; pruned networks are judged as compacted ones.
        command: what was called.

    Returns:
        ``rows``, in the order of the table: ``criterion``, ``asked`` (connectivity), ``seeds``, and ``accuracy``,
        ``connectivity`` and ``synops_kept`` (a share of the dense network of the same seed), each as ``mean``, ``std``
        (of the sample; None for one seed) and ``values``; beside them ``config``, ``conditions`` and ``published``.
    """
    rows: dict[tuple[str, float], list[tuple[int, dict[str, Any]]]] = {}
    for cell, summary in finished:
        rows.setdefault((cell.criterion, cell.connectivity), []).append((cell.config.seed, summary))
    return {
        "config": config.to_dict(),
        "conditions": conditions(command),
        "rows": [_row(*key, runs) for key, runs in rows.items()],
        "published": [row._asdict() for row in PUBLISHED if row.data == config.recipe.data],
    }


def _row(criterion: str, asked: float, runs: list[tuple[int, dict[str, Any]]]) -> Row:
    columns = [summary["compacted"] for _, summary in runs]
    kept = [
        column["synops"] / (summary["dense"] or column)["synops"]
        for column, (_, summary) in zip(columns, runs, strict=True)
    ]
    return {
        "criterion": criterion,
        "asked": asked,
        "seeds": [seed for seed, _ in runs],
        "accuracy": _spread([column["accuracy"] for column in columns]),
        "connectivity": _spread([column["connectivity"] for column in columns]),
        "synops_kept": _spread(kept),
    }


def _spread(values: list[float]) -> dict[str, Any]:
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "std": std, "values": values}


def tables(result: dict[str, Any]) -> Group:
    """Ours, and what was published on the same data set; at most 80 columns."""
    caption = (
        "compacted networks, in %: mean ± standard deviation over the seeds;\n"
        "connectivity and SynOps are shares of the same seed's dense network"
    )
    if any(abs(row["connectivity"]["mean"] - row["asked"]) > 0.01 for row in result["rows"]):
        caption += ";\nwhole channels are cut: so narrow, one more would be more than was asked"
    ours = _table(title(result), caption, HEAD, left=1)
    for number, rows in enumerate(blocks(result)):
        if number:
            ours.add_section()
        for row in rows:
            ours.add_row(*row)
    if not result["published"]:
        return Group(ours)
    caption = "to compare: --preset paper, on all images"
    published = _table("published, at full width on all images", caption, PUBLISHED_HEAD, left=3)
    for row in published_cells(result):
        published.add_row(*row)
    return Group(ours, published)


def _table(title: str, caption: str, head: Sequence[str], left: int) -> Table:
    """A table whose first ``left`` columns are words and whose others are numbers."""
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False)
    for place, name in enumerate(head):
        table.add_column(name, justify="left" if place < left else "right")
    return table


#: Headers of :func:`blocks`, and of :func:`published_cells`.
HEAD = ("criterion", "asked", "connectivity", "accuracy", "SynOps kept", "seeds")
PUBLISHED_HEAD = ("network", "T", "method", "connectivity", "accuracy", "SynOps kept")


def blocks(result: dict[str, Any]) -> list[list[list[str]]]:
    """The table as text, in %: the rows of each connectivity that was asked for, one after the other."""
    found: list[list[list[str]]] = []
    last = None
    for row in result["rows"]:
        if last != row["asked"]:
            found.append([])
        last = row["asked"]
        figures = [_shown(row[key]) for key in ("connectivity", "accuracy", "synops_kept")]
        found[-1].append([row["criterion"], f"{row['asked']:.2%}", *figures, str(len(row["seeds"]))])
    return found


def published_cells(result: dict[str, Any]) -> list[list[str]]:
    """What was published on the same data set, as text."""
    rows = []
    for one in (Published(**row) for row in result["published"]):
        synops = "not told" if one.synops is None else f"{one.synops:.1f}%"
        shares = [f"{one.connectivity:.2f}%", f"{one.accuracy:.2f}%", synops]
        rows.append([one.network, str(one.time_steps), one.method, *shares])
    return rows


def title(result: dict[str, Any]) -> str:
    """What was trained."""
    recipe = result["config"]["recipe"]
    images = f"{recipe['limit_train']} images, " if recipe["limit_train"] else ""
    network = f"{recipe['model']} x {recipe['width']:g} on {recipe['data']}"
    return f"{network}, {images}T = {recipe['time_steps']}, {recipe['epochs']} epochs"


def _shown(figure: dict[str, Any]) -> str:
    spread = "" if figure["std"] is None else f" ± {100 * figure['std']:.2f}"
    return f"{100 * figure['mean']:.2f}{spread}"


def plot(path: Path, result: dict[str, Any]) -> None:
    """Write the PNG: accuracy against connectivity, and against SynOps: a curve with error bars for each criterion,
    dense as a line, and what was published on the same data, unless all of ours is far below it, as after minutes."""
    with drawing() as figure:
        write_whole(path, png(_drawn(figure, result)))


def _drawn(new_figure: type[Figure], result: dict[str, Any]) -> Figure:
    from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

    figure = new_figure(figsize=(10, 4.8), layout="constrained")
    kept, costs = figure.subplots(1, 2, sharey=True)
    asked = sorted(result["config"]["connectivities"])
    rows = result["rows"]
    _draw(kept, rows, "connectivity")
    _draw(costs, rows, "synops_kept")
    kept.set_ylabel("test accuracy of the compacted network")
    kept.set_xlabel("connectivity: weights kept (logarithmic)")
    costs.set_xlabel("SynOps kept (logarithmic)")
    published = [Published(**row) for row in result["published"]]
    best = max((row["accuracy"]["mean"] for row in rows), default=0.0)
    if best < min((one.accuracy / 100 for one in published), default=0.0) - _FAR:
        published = []
    _draw_published(kept, published, "connectivity")
    _draw_published(costs, published, "synops")
    for axes in (kept, costs):
        axes.set_xscale("log")
        axes.margins(x=0.1)
        axes.grid()
    kept.set_xticks(asked, [f"{share:.4g}%" for share in (100 * value for value in asked)])
    kept.minorticks_off()
    costs.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    costs.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    costs.xaxis.set_minor_formatter(NullFormatter())
    kept.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
    seeds = max((len(row["seeds"]) for row in rows), default=0)
    figure.suptitle(f"{title(result)}; mean ± standard deviation of {seeds} seeds", x=0.01, ha="left")
    handles, labels = kept.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _draw(axes: Axes, rows: list[Row], share: str) -> None:
    """The criteria's accuracies over one of the shares that they keep, and the dense network's."""
    for row in rows:
        if row["criterion"] == DENSE:
            middle, spread = row["accuracy"]["mean"], row["accuracy"]["std"] or 0.0
            axes.axhline(middle, color=LIGHT["dense"], linestyle="--", label="dense")
            axes.axhspan(middle - spread, middle + spread, color=LIGHT["dense"], alpha=0.12, linewidth=0)
    criteria = [name for name in dict.fromkeys(row["criterion"] for row in rows) if name != DENSE]
    for position, name in enumerate(criteria):
        own = sorted((row for row in rows if row["criterion"] == name), key=lambda row: row["asked"])
        shift = 1 + 0.012 * (position - (len(criteria) - 1) / 2)  # error bars side by side
        axes.errorbar(
            [row[share]["mean"] * shift for row in own],
            [row["accuracy"]["mean"] for row in own],
            [row["accuracy"]["std"] or 0.0 for row in own],
            marker=MARKERS[position % len(MARKERS)],
            color=SERIES[position % len(SERIES)],
            label=name,
        )


def _draw_published(axes: Axes, published: list[Published], share: str) -> None:
    """Published networks, each method with a mark of its own; the dense ones are at 100 % and would widen the axis."""
    series: dict[str, list[tuple[float, float]]] = {}
    for one in published:
        percent = getattr(one, share)
        places = series.setdefault(f"{one.method}, {one.network}, T = {one.time_steps}: published", [])
        if percent is not None and percent < 100:
            places.append((percent / 100, one.accuracy / 100))
    for position, (label, places) in enumerate(series.items()):
        if places:
            axes.plot(
                *zip(*places, strict=True),
                linestyle="none",
                marker=MARKERS[-1 - position % len(MARKERS)],
                markerfacecolor="none",
                color=LIGHT["muted"],
                label=label,
            )
