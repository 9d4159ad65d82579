"""How a training run may end before its time: one sentence each, and the last good checkpoint kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from ..training import Diverged, Interrupted, RunFolder
from .errors import fail


@contextmanager
def told(folder: RunFolder, say: Callable[[str], None]) -> Iterator[None]:
    """Turn what ends a run early into a sentence and an exit code.

    130: it was asked to stop. 1: it diverged, or a file could not be written.
    An OSError before the run's first checkpoint passes: it is about the input, or the folder.
    """
    go_on = f"go on with: sca train --resume --out {folder.path}"
    kept = f"the last good checkpoint is kept in {folder.path}"
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        say(f"interrupted; {go_on}" if folder.config.exists() else "interrupted before it began")
        raise typer.Exit(130) from error
    except Diverged as error:
        left = kept if folder.checkpoint.exists() else "there was no checkpoint yet"
        fail(f"the training diverged: {error}; {left}; resumed, it would do the same: begin anew with a lower --lr")
        raise typer.Exit(1) from error
    except OSError as error:
        if not folder.checkpoint.exists():
            raise
        fail(f"{error}; {kept}; {go_on}")
        raise typer.Exit(1) from error
