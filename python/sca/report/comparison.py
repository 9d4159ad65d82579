"""The table of a run's summary, dense against compacted: its rows, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["NOT_MEASURED", "comparison"]

NOT_MEASURED = "not measured"

Column = Mapping[str, Any]


def comparison(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of text.

    Args:
        summary: ``dense`` (or None) and ``compacted``: accuracy, parameters, connectivity, synops, energy_pj, and the
            medians of training and inference in samples/s; None where something was not measured.

    Returns:
        Headers (the first is empty), and one row for each figure, its name first.
    """
    dense, compacted = summary["dense"], summary["compacted"]
    if dense is None:
        return ["", "dense"], [[row.label, _shown(row, row.value(compacted))] for row in _ROWS]
    rows = []
    for row in _ROWS:
        before, after = row.value(dense), row.value(compacted)
        change = "" if None in (before, after) else row.change(before, after)
        rows.append([row.label, _shown(row, before), _shown(row, after), change])
    return ["", "dense", "compacted", "change"], rows


@dataclass(frozen=True)
class _Row:
    label: str
    value: Callable[[Column], float | None]
    show: Callable[[float], str]
    change: Callable[[float, float], str]


def _shown(row: _Row, value: float | None) -> str:
    return NOT_MEASURED if value is None else row.show(value)


def _share(before: float, after: float) -> str:
    return f"{after / before:.1%}"


def _factor(before: float, after: float) -> str:
    return f"{after / before:.2f} x"


_ROWS = (
    _Row("test accuracy", lambda c: c["accuracy"], "{:.2%}".format, lambda a, b: f"{100 * (b - a):+.2f} points"),
    _Row("parameters", lambda c: c["parameters"], "{:,}".format, _share),
    _Row("connectivity", lambda c: c["connectivity"], "{:.1%}".format, _share),
    _Row("SynOps per image", lambda c: c["synops"], "{:,.0f}".format, _share),
    _Row("energy per image (nJ)", lambda c: c["energy_pj"] and c["energy_pj"] / 1e3, "{:,.0f}".format, _share),
    _Row("training (samples/s)", lambda c: c["training"]["median"], "{:,.0f}".format, _factor),
    _Row("inference (samples/s)", lambda c: c["inference"]["median"], "{:,.0f}".format, _factor),
)
