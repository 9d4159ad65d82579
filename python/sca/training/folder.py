"""The folder of one run: who writes to it, and what lies in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import checkpoint
from ..files import open_lock, read_whole, write_json, write_lines
from .config import TrainConfig

MODES = ("new", "resume", "overwrite")

_log = logging.getLogger(__name__)


class RunFolder:
    """Exclusive access to a run's folder; a context manager.

    Args:
        path: the folder; made when missing.
        mode: ``new`` refuses a folder that already holds a run, ``resume`` needs one, ``overwrite`` removes it.

    Attributes:
        config, checkpoint, previous, log, updates, model, summary, plot, report: its files. ``previous`` is the
            checkpoint before the last one; ``updates`` the log of what pruning did.

    Raises:
        ValueError: the folder is not writable, another run is writing to it, or ``mode`` does not fit what it holds.
    """

    def __init__(self, path: Path, mode: str = "new") -> None:
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
        self.path = path
        self.config = path / "config.json"
        self.checkpoint = path / "checkpoint.safetensors"
        self.previous = path / "checkpoint.previous.safetensors"
        self.log = path / "metrics.jsonl"
        self.updates = path / "updates.jsonl"
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

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def _files(self) -> tuple[Path, ...]:
        logs, results = (self.log, self.updates), (self.model, self.summary, self.plot, self.report)
        return (self.config, self.checkpoint, self.previous, *logs, *results)

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

    def write_log(self, rows: list[dict[str, Any]]) -> None:
        """Replace the log; one JSON object a line."""
        write_lines(self.log, rows)

    def write_updates(self, rows: list[dict[str, Any]]) -> None:
        """Replace the log of the updates; one JSON object a line."""
        write_lines(self.updates, rows)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write a checkpoint and keep the one before it.

        Raises:
            OSError: the disk is full; the last good checkpoint stays.
        """
        fresh = self.path / "checkpoint.new.safetensors"
        checkpoint.save(fresh, state)
        if self.checkpoint.exists():
            self.checkpoint.replace(self.previous)
        fresh.replace(self.checkpoint)

    def load_checkpoint(self, check: Callable[[Any], None] = lambda state: None) -> dict[str, Any] | None:
        """The newest good checkpoint, or None when the run had not written one yet.

        A file that is damaged or not of this run is refused with a warning that names it, and the one before it is
        used: a run resumed from an older state arrives at the same result.

        Args:
            check: raises a ValueError for a state that is not of this run.

        Raises:
            CheckpointError: there are checkpoints and none of them is good.
        """
        refused: checkpoint.CheckpointError | None = None
        for path in (self.checkpoint, self.previous):
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
