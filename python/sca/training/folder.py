"""The folder of one run: who writes to it, and what lies in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..files import open_lock, read_whole, write_json
from .callbacks import Callback
from .checkpoints import BestWeights, Checkpoints
from .config import TrainConfig
from .logs import CSVLog, JSONLog, TensorBoard
from .state import unresumable

MODES = ("new", "resume", "overwrite")


class RunFolder:
    """Exclusive access to a run's folder; a context manager.

    Args:
        path: the folder; made when missing.
        mode: ``new`` refuses a folder that already holds a run, ``resume`` needs one, ``overwrite`` removes it.

    Attributes:
        config, environment, recording, checkpoint, previous, best, log, updates, table, model, summary, plot, report:
            its files. ``environment`` says what each start of the run ran on; ``recording`` is one of the data set's,
            where that is of events; ``previous`` is the checkpoint before the last one; ``best`` the best epoch's
            weights; ``updates`` the log of what pruning did; ``table`` is ``log`` as CSV.
        tensorboard: folder of TensorBoard's files.

    Raises:
        ValueError: the folder is not writable, another run is writing to it, or ``mode`` does not fit what it holds.
    """

    def __init__(self, path: Path, mode: str = "new") -> None:
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
        self.path = path
        self.config = path / "config.json"
        self.environment = path / "environment.json"
        self.recording = path / "recording.json"
        self.checkpoints, best = Checkpoints(path), BestWeights(path)
        self.checkpoint, self.previous, self.best = self.checkpoints.newest, self.checkpoints.previous, best.file
        log, table = JSONLog(path), CSVLog(path)
        self.log, self.updates, self.table = log.epochs, log.updates, table.file
        self.tensorboard = path / "tensorboard"
        self.model = path / "model.safetensors"
        self.summary = path / "summary.json"
        self.plot = path / "curves.png"
        self.report = path / "report.html"
        lock = path / ".lock"
        try:
            self._made = [folder for folder in (path, *path.parents) if not folder.exists()]
            self._made_lock = not lock.exists()
            path.mkdir(parents=True, exist_ok=True)
            # locked until it is closed; the system frees it when the process is killed
            self._lock = open_lock(lock)
        except OSError as error:
            raise ValueError(f"out: expected a folder to write to, got {path} ({error.strerror})") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not lock.exists() or not os.path.samestat(lock.stat(), os.fstat(self._lock.fileno())):
                raise BlockingIOError  # who held it has removed it meanwhile
        except OSError as error:
            self._lock.close()
            raise ValueError(f"out: another run is writing to {self.path}") from error
        try:
            self._prepare(mode)
        except BaseException:
            self.close()
            raise

    def _prepare(self, mode: str) -> None:
        held = [file.name for file in self._files if file.exists()]
        if mode == "new" and held:
            raise ValueError(
                f"out: {self.path} already holds a run ({', '.join(held)}); resume it, overwrite it, or name another"
            )
        if mode == "resume" and not self.config.exists():
            raise ValueError(f"out: {self.path} holds no run to resume (no {self.config.name})")
        if mode == "overwrite":
            for file in self._files:
                file.unlink(missing_ok=True)
            if self.tensorboard.is_dir() and not self.tensorboard.is_symlink():
                shutil.rmtree(self.tensorboard)

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def _files(self) -> tuple[Path, ...]:
        states = self.checkpoint, self.previous, self.best
        starts = self.config, self.environment, self.recording
        return (*starts, *states, self.log, self.updates, self.table, *self._results)

    @property
    def _results(self) -> tuple[Path, ...]:
        return (self.model, self.summary, self.plot, self.report)

    def forget_results(self) -> None:
        """Remove what a finished run left: it goes on, and they would be of another one."""
        for file in self._results:
            file.unlink(missing_ok=True)

    def callbacks(self, config: TrainConfig) -> list[Callback]:
        """What writes the run's states and logs here.

        Raises:
            ImportError: ``config.tensorboard`` needs a package that is missing.
            ValueError: its folder is a symbolic link.
        """
        best = [BestWeights(self.path)] if config.keep_best else []
        board = [TensorBoard(self.inside(self.path, self.tensorboard.name))] if config.tensorboard else []
        return [*best, self.checkpoints, JSONLog(self.path), CSVLog(self.path), *board]

    def close(self) -> None:
        """Let others have the folder; where nothing of a run was written, nothing that was made for it stays."""
        if self._made_lock and not any(file.exists() for file in self._files):
            (self.path / ".lock").unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty: somebody else's by now
                for folder in self._made:
                    folder.rmdir()
        self._lock.close()

    def write_config(self, config: TrainConfig) -> None:
        """Store what the run is."""
        write_json(self.config, config.to_dict())

    @staticmethod
    def inside(path: Path, name: str) -> Path:
        """The folder ``name`` in the folder ``path``, which a run is to write to.

        Raises:
            ValueError: it is a symbolic link, which may lead anywhere.
        """
        folder = path / name
        if folder.is_symlink():
            raise ValueError(f"out: expected a folder to write to, {folder} is a symbolic link, which is not followed")
        return folder

    @staticmethod
    def stored_config(path: Path, **changes: Any) -> TrainConfig | None:
        """What the run in the folder ``path`` is, with changes; None where there is none.

        Raises:
            ValueError: the file is damaged or of another version.
        """
        file = path / "config.json"
        if not file.exists():
            return None
        try:
            return TrainConfig.from_dict(json.loads(read_whole(file)), **changes)
        except (OSError, RecursionError, ValueError) as error:
            raise ValueError(f"{file}: not the configuration of a run ({error})") from error

    @staticmethod
    def check_resumption(path: Path, held: TrainConfig, config: TrainConfig) -> None:
        """ValueError unless the run in the folder ``path``, which is ``held``, may go on as ``config``: where files lie
        and what computes may be otherwise, and there may be more epochs."""
        differing = unresumable(config, held.to_dict())
        if differing == ["epochs"]:
            raise ValueError(f"epochs: expected at least the {held.epochs} of the run in {path}, got {config.epochs}")
        if differing:
            names = ", ".join(differing)
            raise ValueError(f"{names}: the run in {path} has another value; a resumed run keeps its own")

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """:meth:`sca.training.checkpoints.Checkpoints.save`."""
        self.checkpoints.save(state)

    def load_checkpoint(self, check: Callable[[Any], None] = lambda state: None) -> dict[str, Any] | None:
        """:meth:`sca.training.checkpoints.Checkpoints.load`."""
        return self.checkpoints.load(check)
