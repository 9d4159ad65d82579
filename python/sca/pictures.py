"""Pictures without a window: matplotlib's figures alone, in its own style, whatever backend and settings a user has."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["drawing", "png"]


@contextlib.contextmanager
def drawing(settings: Mapping[str, Any] | None = None) -> Iterator[type[Figure]]:
    """The context in which figures are made and written.

    Args:
        settings: over matplotlib's defaults; those of a matplotlibrc, which may ask for LaTeX, do not count.

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

    # names are no mathematics, and a dollar in one is no error
    with style.context(["default", {"text.parse_math": False, **(settings or {})}]):
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
