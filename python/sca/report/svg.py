"""A matplotlib figure as SVG inside a page: text stays text, and colours follow the page's theme."""

from __future__ import annotations

import base64
import html
import io
import re
import zlib
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from ..pictures import LIGHT, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["WIDTH", "blank", "inline", "stencil", "style"]

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


def stencil(
    role: str, salt: str, corners: Iterable[tuple[float, float]], opacities: Iterable[np.ndarray], scale: float
) -> str:
    """Elements that paint with a role's colour through pictures, so that these follow the page's theme.

    Args:
        salt: keeps the ids of several figures of a page apart.
        corners: left and upper edge of each picture, in units.
        opacities: the pixels of each, uint8 [H, W].
        scale: units that a pixel is wide and high.
    """
    from PIL import Image  # which matplotlib needs

    name = f"{role}-{zlib.crc32(salt.encode(errors='replace')):08x}"
    masks, outline = "", ""  # of the pictures alone: where a mask is as large as the figure, paper shows its edge
    for (left, top), opacity in zip(corners, opacities, strict=True):
        file = io.BytesIO()
        Image.fromarray(np.stack([np.full_like(opacity, 255), opacity], -1)).save(file, format="png")
        height, width = (scale * side for side in opacity.shape)
        masks += (
            f'<image x="{left:.2f}" y="{top:.2f}" width="{width:.2f}" height="{height:.2f}" preserveAspectRatio="none"'
            ' style="image-rendering: pixelated"'
            f' href="data:image/png;base64,{base64.b64encode(file.getvalue()).decode("ascii")}"/>'
        )
        outline += f"M{left:.2f} {top:.2f}h{width:.2f}v{height:.2f}h-{width:.2f}z"
    return f'<mask id="{name}">{masks}</mask><path d="{outline}" fill="var(--{role})" mask="url(#{name})"/>'


def inline(figure: Figure, title: str, behind: str = "") -> str:
    """The ``<svg>`` element. ``title`` names it for those who cannot see it, ``behind`` are elements below the figure's
    own. The colours of :data:`sca.pictures.LIGHT` become the page's variables of their roles' names."""
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
    start = f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(title)}">'
    return start + behind + text.strip()
