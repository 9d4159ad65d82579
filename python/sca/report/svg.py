"""A matplotlib figure as SVG inside a page: text stays text, and colours follow the page's theme."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from ..pictures import LIGHT, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["WIDTH", "blank", "inline", "style"]

#: Units of a figure's width. A phone shows them as about as many pixels.
WIDTH = 320


def style(salt: str) -> AbstractContextManager[Any]:
    """The context in which a figure is built and written; ``salt`` keeps the ids of several figures of a page apart.

    Raises:
        ImportError: matplotlib is missing.
    """
    return drawing({"svg.fonttype": "none", "svg.hashsalt": salt.encode(errors="replace").decode()})


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
    """The ``<svg>`` element. ``title`` names it for those who cannot see it. The colours of :data:`sca.pictures.LIGHT`
    become the page's variables of their roles' names."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<g ") :]  # behind the declarations and the metadata
    # ids are numbered anew in each figure, and nothing refers to these; the page says what text is set in
    text = re.sub(r' id="[\w.]+_\d+"|font-family: [^;"]+; | transform="rotate\(-0 [^"]*"', "", text)
    for role, colour in LIGHT.items():
        text = text.replace(colour, f"var(--{role})")
    text = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), text)  # coordinates, not what is said
    text = re.sub(r"\s+", " ", text).replace("> <", "><")
    width, height = (72 * size for size in figure.get_size_inches())
    return f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(title)}">{text.strip()}'
