"""Callbacks that keep a run's state: to go on from, and its best epoch."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import checkpoint
from .callbacks import Callback

if TYPE_CHECKING:
    from .loop import Trainer

__all__ = ["BestWeights", "Checkpoints"]

_log = logging.getLogger(__name__)


class Checkpoints(Callback):
    """Keeps a run's newest state, and the one before it, in a folder::

        checkpoints = Checkpoints("runs/mine")
        trainer = Trainer(..., callbacks=[checkpoints])
        checkpoints.resume(trainer)                  # where the folder holds a state of this run
        trainer.fit()

    Args:
        folder: made when it is missing, and something is written.

    Attributes:
        newest, previous: the files.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self.newest = self._folder / "checkpoint.safetensors"
        self.previous = self._folder / "checkpoint.previous.safetensors"
        self._writes = True

    def on_start(self, trainer: Trainer) -> None:
        """The first process writes for all."""
        self._writes = trainer.ranks.is_first

    def on_checkpoint(self, state: dict[str, Any]) -> None:
        """:meth:`save` it."""
        if self._writes:
            self.save(state)

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint and keep the one before it.

        Raises:
            OSError: the disk is full; the last good checkpoint stays.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        fresh = self._folder / "checkpoint.new.safetensors"
        checkpoint.save(fresh, state)
        if self.newest.exists():
            self.newest.replace(self.previous)
        fresh.replace(self.newest)

    def load(self, check: Callable[[Any], None] = lambda state: None) -> dict[str, Any] | None:
        """The newest good checkpoint, or None when the run had not written one yet.

        A file that is damaged or not of this run is refused with a warning that names it, and the one before it is
        used: a run resumed from an older state arrives at the same result.

        Args:
            check: raises a ValueError for a state that is not of this run.

        Raises:
            CheckpointError: there are checkpoints and none of them is good.
        """
        refused: checkpoint.CheckpointError | None = None
        for path in (self.newest, self.previous):
            if not path.exists():
                continue
            try:
                state = checkpoint.load(path)
                try:
                    check(state)
                except ValueError as error:
                    raise checkpoint.CheckpointError(f"{path}: not a checkpoint of this run ({error})") from error
                return state
            except checkpoint.CheckpointError as error:
                _log.warning("refused %s", error)
                refused = refused or error
        if refused is not None:
            raise refused
        return None

    def resume(self, trainer: Trainer) -> bool:
        """Have a trainer go on from the newest good checkpoint, on all processes of the run from that of the first.

        Returns:
            Whether there was one.

        Raises:
            CheckpointError: there are checkpoints and none of them is good, or it can't be taken up.
        """
        return resume(trainer, self)


def resume(trainer: Trainer, checkpoints: Checkpoints | None) -> bool:
    """:meth:`Checkpoints.resume`; ``checkpoints`` may be None on all processes but the first."""
    state = trainer.ranks.from_first(lambda: checkpoints.load(trainer.check_state))
    if state is None:
        return False
    try:
        trainer.load_state(state)
    except checkpoint.MALFORMED as error:  # its digest is right, and it is of this run: somebody has made it up
        place = "what the first process sent" if checkpoints is None else checkpoints.newest.parent
        raise checkpoint.CheckpointError(f"{place}: not the state of this run ({checkpoint.told(error)})") from error
    return True


class BestWeights(Callback):
    """Keeps the weights and the structure of the epoch that was best on the validation images (of several, the first).

    Among a trainer's callbacks it comes before :class:`Checkpoints`: killed between the two, a resumed run comes to the
    same epoch again.

    Args:
        folder: where ``best.safetensors`` is written; it exists.

    Attributes:
        file: :func:`sca.training.load_model` reads it; it also holds ``epoch`` and ``validation_accuracy``.
    """

    def __init__(self, folder: str | Path) -> None:
        self.file = Path(folder) / "best.safetensors"
        self._best = -1.0
        self._writes = True

    def on_start(self, trainer: Trainer) -> None:
        """See what there is already.

        Raises:
            ValueError: the trainer has no validation images.
            CheckpointError: the file is damaged, or something else.
        """
        if trainer.validation is None:
            raise ValueError("validation: expected images to choose the best epoch by, got none")
        self._writes = trainer.ranks.is_first
        if self._writes and self.file.exists():
            self._best = self.load()["validation_accuracy"]

    def on_checkpoint(self, state: dict[str, Any]) -> None:
        """Write the file if an epoch has just ended, better than all before."""
        if not self._writes or state["sums"]["batches"] or not state["history"]:
            return
        row = state["history"][-1]
        if row["validation_accuracy"] > self._best:
            self._best = row["validation_accuracy"]
            kept = {
                "architecture": state["architecture"],
                "active": state["active"],
                "model": result_weights(state),
                "epoch": row["epoch"],
                "validation_accuracy": self._best,
            }
            checkpoint.save(self.file, kept)

    def load(self) -> dict[str, Any]:
        """What the file holds.

        Raises:
            CheckpointError: it is damaged, or something else.
            OSError: there is none.
        """
        held = checkpoint.load(self.file)
        if not isinstance(held, dict) or not isinstance(held.get("validation_accuracy"), float):
            raise checkpoint.CheckpointError(f"{self.file}: not the best weights of a run")
        return held


def result_weights(state: dict[str, Any]) -> dict[str, Any]:
    """The ``state_dict`` in a state or in a file of weights that is tested, and was the result had the run ended there:
    that of the average if there is one."""
    average = state.get("average")
    return state["model"] if average is None else average["model"]
