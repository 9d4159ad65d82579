"""A matplotlib figure as SVG inside a page: text stays text, and colours follow the page's theme."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ..pictures import drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "WIDTH", "blank", "inline", "style"]

#: Role -> light colour. Blue and orange stay apart for every kind of colour vision (after Okabe and Ito). The page
#: sets a variable of the role's name.
COLOURS = {"ink": "#1b1f24", "muted": "#5d6670", "line": "#d8dde3", "kept": "#0072b2", "cut": "#b84a00"}
#: Units of a figure's width. A phone shows them as about as many pixels.
WIDTH = 320

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.titlecolor": COLOURS["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "lines.linewidth": 1.5,
    "svg.fonttype": "none",
}


def style(salt: str) -> AbstractContextManager[Any]:
    """The context in which a figure is built and written; ``salt`` keeps the ids of several figures of a page apart.

    Raises:
        ImportError: matplotlib is missing.
    """
    return drawing({**_STYLE, "svg.hashsalt": salt.encode(errors="replace").decode()})


def blank(height: float, rows: Sequence[float] = (1,), left: float = 34, right: float = 8) -> tuple[Figure, list[Axes]]:
    """A figure of :data:`WIDTH` by ``height`` units, and its axes one above the other.

    Args:
        rows: relative heights of the axes, which share the x axis.
        left, right: what labels beside the axes need, in units. Above each axes is room for its title, below the last
            one for ticks and a label. Where the axes are is known before anything is drawn.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    axes = figure.subplots(len(rows), sharex=True, squeeze=False, height_ratios=rows)[:, 0]
    top, bottom, gap = 16, 30, 26
    mean = (height - top - bottom - gap * (len(rows) - 1)) / len(rows)
    figure.subplots_adjust(left / WIDTH, bottom / height, 1 - right / WIDTH, 1 - top / height, hspace=gap / mean)
    return figure, list(axes)


def inline(figure: Figure, title: str) -> str:
    """The ``<svg>`` element. ``title`` names it for those who cannot see it."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<g ") :]  # behind the declarations and the metadata
    # ids are numbered anew in each figure, and nothing refers to these; the page says what text is set in
    text = re.sub(r' id="[\w.]+_\d+"|font-family: [^;"]+; | transform="rotate\(-0 [^"]*"', "", text)
    for role, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{role})")
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), text)  # coordinates, not what is said
    text = re.sub(r"\s+", " ", text).replace("> <", "><")
    width, height = (72 * size for size in figure.get_size_inches())
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{title}">{text.strip()}'
