"""How a training run may end before its time: one sentence each, and the last good checkpoint kept."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import typer

from ..pruning import RanksDiffer
from ..training import Diverged, Interrupted, RankLost, RunFolder
from .errors import fail, is_about_memory, memory_sentence
from .terminal import write_line


@dataclass
class Ending:
    """What there is to say about the folder of a run; None in a process that has none."""

    folder: RunFolder | None = None

    @property
    def kept(self) -> str:
        """Where the last good checkpoint is."""
        if self.folder is None:
            return ""
        if not self.has_checkpoint:
            return "; there was no checkpoint yet"
        return f"; the last good checkpoint is kept in {self.folder.path}"

    @property
    def resumable(self) -> str:
        """How to go on, where that is possible."""
        if self.folder is None or not self.folder.config.exists():
            return ""
        return f"; go on with: sca train --resume --out {shlex.quote(str(self.folder.path))}"

    @property
    def has_checkpoint(self) -> bool:
        return self.folder is not None and self.folder.checkpoint.exists()


@contextmanager
def told() -> Iterator[Ending]:
    """Turn what ends a run early into a sentence and an exit code.

    130: it was asked to stop. 1: it diverged, lost a process, or a file could not be written. An OSError before the
    run's first checkpoint passes: it is about the input, or the folder.
    """
    ending = Ending()
    try:
        yield ending
    except (Interrupted, KeyboardInterrupt) as error:
        if ending.folder is not None:
            write_line(f"interrupted{ending.resumable}")
        raise typer.Exit(130) from error
    except Diverged as error:
        fail(f"the training diverged: {error}{ending.kept}; resumed, it would do so again: start with a lower --lr")
    except (RankLost, RanksDiffer) as error:
        fail(f"{error}{ending.kept}{ending.resumable}")
    except (MemoryError, RuntimeError) as error:
        if not is_about_memory(error):
            raise
        fail(f"{memory_sentence(error)}{ending.kept}")
    except OSError as error:
        if not ending.has_checkpoint:
            raise
        fail(f"{error}{ending.kept}{ending.resumable}")
    else:
        return
    raise typer.Exit(1)
