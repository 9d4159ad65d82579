"""The table of a run's figures, dense against compacted: its rows, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["MEANINGS", "NOT_MEASURED", "comparison", "table"]

NOT_MEASURED = "not measured"
#: What the shares among the figures are shares of, wherever they are told.
MEANINGS = "density: active / all channels of the groups that can be pruned; connectivity: active / all weights"

Column = Mapping[str, Any]


def comparison(summary: Mapping[str, Any], alone: str = "dense") -> tuple[list[str], list[list[str]]]:
    """Headers and rows of text.

    Args:
        summary: ``dense`` (or None) and ``compacted``: accuracy, density, connectivity, parameters, synops, energy_pj,
            and the medians of training and inference in samples/s; None where something was not measured. The density
            may be missing: summaries of before did not tell it.
        alone: what to call the one column where ``dense`` is None.

    Returns:
        Headers (the first is empty), and one row for each figure, its name first.
    """
    dense, compacted = summary["dense"], summary["compacted"]
    told = [row for row in _ROWS if row.field in compacted]
    if dense is None:
        return ["", alone], [[row.label, _shown(row, row.value(compacted))] for row in told]
    rows = []
    for row in told:
        before, after = row.value(dense), row.value(compacted)
        change = "" if None in (before, after) else row.change(before, after)
        rows.append([row.label, _shown(row, before), _shown(row, after), change])
    return ["", "dense", "compacted", "change"], rows


def table(summary: Mapping[str, Any], alone: str = "dense") -> Table:
    """The table for the terminal, the summary's ``notes`` below it."""
    from rich.table import Table

    (first, *columns), rows = comparison(summary, alone)
    title = " against ".join(column for column in columns if column != "change").capitalize()
    shown = Table(first, title=title, caption="\n".join(summary["notes"]), caption_justify="left")
    for name in columns:
        shown.add_column(name, justify="right")
    for row in rows:
        shown.add_row(*row)
    return shown


@dataclass(frozen=True)
class _Row:
    label: str
    field: str
    show: Callable[[float], str]
    change: Callable[[float, float], str]
    unit: float = 1.0

    def value(self, column: Column) -> float | None:
        """The figure in the row's unit; of a speed, its median."""
        value = column.get(self.field)
        if isinstance(value, Mapping):
            value = value["median"]
        return None if value is None else value / self.unit


def _shown(row: _Row, value: float | None) -> str:
    return NOT_MEASURED if value is None else row.show(value)


def _share(before: float, after: float) -> str:
    return f"{after / before:.1%}"


def _factor(before: float, after: float) -> str:
    return f"{after / before:.2f} x"


_ROWS = (
    _Row("test accuracy", "accuracy", "{:.2%}".format, lambda a, b: f"{100 * (b - a):+.2f} points"),
    _Row("density", "density", "{:.1%}".format, _share),
    _Row("connectivity", "connectivity", "{:.1%}".format, _share),
    _Row("parameters", "parameters", "{:,.0f}".format, _share),
    _Row("SynOps per sample", "synops", "{:,.0f}".format, _share),
    _Row("energy per sample (nJ)", "energy_pj", "{:,.0f}".format, _share, 1e3),
    _Row("training (samples/s)", "training", "{:,.0f}".format, _factor),
    _Row("inference (samples/s)", "inference", "{:,.0f}".format, _factor),
)
