"""Pictures without a window, all in one style: matplotlib's figures alone, whatever backend and settings a user has.

Colours of results are told here and nowhere else. They are after Okabe and Ito ("Color universal design", 2008), who
keep them apart for people who lack one kind of cone; where they tell more than two things apart, marks do as well.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DARK", "LIGHT", "MARKERS", "SERIES", "drawing", "png"]

#: Role -> colour on white paper. ``kept`` and ``cut``: what pruning left and what it took; ``dense``: the network that
#: was not pruned. Each is dark enough to write in.
LIGHT = {
    "paper": "#ffffff",
    "ink": "#1b1f24",
    "muted": "#5d6670",
    "line": "#d8dde3",
    "kept": "#0072b2",
    "cut": "#b84a00",
    "dense": "#6b737d",
}
#: The same roles on a dark screen.
DARK = {
    "paper": "#15181c",
    "ink": "#e8eaed",
    "muted": "#a3abb4",
    "line": "#363d45",
    "kept": "#56b4e9",
    "cut": "#f0a35e",
    "dense": "#939ca6",
}
#: Colours and marks of several things of one kind (criteria, libraries, densities), in their order.
SERIES = (LIGHT["kept"], "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", LIGHT["ink"])
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_STYLE = {
    "figure.dpi": 144,
    "figure.titlesize": 10,
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlecolor": LIGHT["ink"],
    "axes.edgecolor": LIGHT["line"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.6,
    "text.color": LIGHT["ink"],
    "xtick.color": LIGHT["line"],
    "ytick.color": LIGHT["line"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "errorbar.capsize": 2.5,
    "legend.frameon": False,
    # names are no mathematics, and a dollar in one is no error
    "text.parse_math": False,
}


@contextlib.contextmanager
def drawing(settings: Mapping[str, Any] | None = None) -> Iterator[type[Figure]]:
    """The context in which figures are made and written, in the style of this module.

    Args:
        settings: of matplotlib, over that style; those of a matplotlibrc, which may ask for LaTeX, do not count.

    Yields:
        The class ``Figure``.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        _load()
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'sca_kernels[train]'") from error
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", {**_STYLE, **(settings or {})}]):
        yield Figure


def png(figure: Figure) -> bytes:
    """The figure as the content of a file."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def _load() -> None:
    """Import matplotlib (half a second, which is why nothing does at its top) without MPLBACKEND: where that names a
    backend which is not installed, as in a process that a notebook started, the import fails for good."""
    if sys.modules.get("matplotlib") is not None:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend  # for whoever opens windows in this process
