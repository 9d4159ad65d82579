"""What the axes of a report's figures are labelled with: rows of names, ends of lines, few ticks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from ..pictures import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

__all__ = ["ROW", "apart", "beside", "few", "label_ends", "layers", "room"]

ROW = 17.0  # units of height that a layer takes
_LETTERS = 24  # of the name of a layer, at most
_LINE, _LABEL = 11.0, 60.0  # units of height and width that a label takes


def label_ends(axes: Axes) -> None:
    """Write each line's label beside its last point, in its colour."""
    if not axes.lines:
        return
    ends = [(line.get_xdata()[-1], line.get_ydata()[-1]) for line in axes.lines]
    places = axes.transData.transform(ends)
    heights = apart(places)
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


def apart(places: Sequence[tuple[float, float]]) -> list[float]:
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


def room(names: Iterable[str]) -> float:
    """Units that the longest name takes."""
    return 8 + 5.2 * max(len(_short(name)) for name in names)


def _short(name: str) -> str:
    """A name that leaves room for its row: the ends of a longer one, in signs that can be drawn."""
    shown = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in name)
    half = _LETTERS // 2
    return shown if len(shown) <= _LETTERS else f"{shown[: half - 1]}\N{HORIZONTAL ELLIPSIS}{shown[-half:]}"


def layers(axes: Axes, names: Sequence[str] | dict[str, Any]) -> None:
    """Rows of 1, the first name on top."""
    axes.set_yticks([len(names) - 1 - row + 0.4 for row in range(len(names))], [_short(name) for name in names])
    axes.set_ylim(-0.05, len(names))
    axes.tick_params("y", length=0, labelcolor=LIGHT["ink"])
    axes.spines["left"].set_visible(False)


def beside(axes: Axes, bottom: float, text: str) -> None:
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


def few(count: int, integer: bool = False) -> MaxNLocator:
    """Ticks at round numbers, ``count`` at most."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(count, integer=integer)
