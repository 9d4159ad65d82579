"""What a run's folder tells: plain JSON, checked once, so that what draws it need not doubt it."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..cost import CostReport
from ..files import read_whole
from .channels import MOST_CHANNELS, check_channels

__all__ = [
    "MOST_FRAMES",
    "MOST_SIDE",
    "Accuracies",
    "Recording",
    "Run",
    "accuracies",
    "last_accuracy",
    "read_run",
    "read_runs",
    "read_summary",
]

Rows = list[dict[str, Any]]

#: No file of a run is larger.
MAX_BYTES = 2**28
#: No stored recording has more frames, or pixels in a row or column of them.
MOST_FRAMES, MOST_SIDE = 16, 512
# Nothing has more groups or layers, and nothing that is counted or measured is larger.
_MOST, _COUNT, _AMOUNT = 4096, 1e12, 1e30


@dataclass(frozen=True)
class _Kind:
    """What a value may be: in words, and as a test."""

    expected: str
    holds: Callable[[Any], bool]

    def check(self, value: Any, place: str) -> None:
        """ValueError, beginning with ``place``, where the value is something else."""
        if not self.holds(value):
            raise ValueError(f"{place}: expected {self.expected}, got {value!r:.100}")


def _number(expected: str, low: float, high: float = _AMOUNT, whole: bool = False) -> _Kind:
    kinds = (int,) if whole else (int, float)
    return _Kind(expected, lambda value: type(value) in kinds and low <= value <= high)


_TEXT = _Kind("a string", lambda value: isinstance(value, str))
_PATH = _Kind("a path, or null", lambda value: value is None or (isinstance(value, str) and "\0" not in value))
_FLAG = _Kind("true or false", lambda value: isinstance(value, bool))
_NONE_OR_MORE = _number("a number of things, 0 or more", 0, _COUNT, whole=True)
_ONE_OR_MORE = _number("a number of things, 1 or more", 1, _COUNT, whole=True)
_SHARE = _number("a number in [0, 1]", 0, 1)
_REAL = _number("a number", -_AMOUNT)
_MEASURE = _number("a number >= 0", 0)
_POSITIVE = _number("a number > 0", 1e-30)


@dataclass(frozen=True)
class _Maybe:
    """Null, or of a kind."""

    kind: Any


@dataclass(frozen=True)
class _Optional:
    """Of a kind, or not there: logs of before lack it, or of runs that do otherwise."""

    kind: Any


@dataclass(frozen=True)
class _Named:
    """An object of any names, whose values are of a kind; at least one."""

    kind: Any


@dataclass(frozen=True)
class _Listed:
    """A list of values of a kind; at least ``least``, at most ``most``."""

    kind: Any
    least: int = 0
    most: int = _MOST


# The fields that a page needs, and what they are; a dict is an object with (at least) these.
_CONFIG = {"model": _TEXT, "data": _TEXT, "epochs": _ONE_OR_MORE, "time_steps": _ONE_OR_MORE}
_EPOCH = {
    **dict.fromkeys(("epoch", "step"), _ONE_OR_MORE),
    **dict.fromkeys(("test_accuracy", "validation_accuracy"), _Optional(_SHARE)),
    **dict.fromkeys(("density", "connectivity"), _SHARE),
    "samples_per_second": _POSITIVE,
    "active": _Named(_ONE_OR_MORE),
    "firing_rates": _Named(_SHARE),
}
_SCORES = {
    **dict.fromkeys(("kept", "pruned"), _Listed(_NONE_OR_MORE, 1)),
    **dict.fromkeys(("low", "high", "cut"), _Maybe(_REAL)),
}
_CHANGE = {
    "before": _ONE_OR_MORE,
    **dict.fromkeys(("pruned", "regrown"), _NONE_OR_MORE),
    **dict.fromkeys(("pruned_channels", "regrown_channels"), _Optional(_Listed(_NONE_OR_MORE, most=MOST_CHANNELS))),
    "all_scores": _Optional(_TEXT),
    "scores": _SCORES,
}
_UPDATE = {"step": _ONE_OR_MORE, "active": _Named(_ONE_OR_MORE), "groups": _Named(_CHANGE)}
_COLUMN = {
    "parameters": _ONE_OR_MORE,
    "density": _Optional(_SHARE),
    "connectivity": _number("a number in (0, 1]", 1e-30, 1),
    "training": {"median": _POSITIVE},
    "inference": {"median": _POSITIVE},
}
_MEASURED = {"accuracy": _SHARE, "synops": _MEASURE, "energy_pj": _MEASURE}
_START = {
    **dict.fromkeys(("command", "processor"), _Optional(_TEXT)),
    "commit": _Optional(_Maybe(_TEXT)),
    "versions": _Optional(_Named(_Maybe(_TEXT))),
}
_DENSE = {"accuracy": _SHARE, "synops": _POSITIVE, "energy_pj": _POSITIVE}
_LAYER = {
    **dict.fromkeys(("name", "label"), _TEXT),
    **dict.fromkeys(("parameters", "active_parameters", "active_weights"), _NONE_OR_MORE),
    "weights": _ONE_OR_MORE,
    "spiking": _FLAG,
    "input_rate": _SHARE,
    "dense_macs": _POSITIVE,
    **dict.fromkeys(("presentations", "macs", "acs"), _MEASURE),
}
_COST = {
    **dict.fromkeys(("samples", "time_steps", "parameters", "active_parameters"), _ONE_OR_MORE),
    "layers": _Listed(_LAYER, 1),
}
_SUMMARY = {
    "dense": _Maybe({**_COLUMN, **{name: _Maybe(kind) for name, kind in _DENSE.items()}}),
    "compacted": {**_COLUMN, **_MEASURED},
    "notes": _Listed(_TEXT),
    "cost": _COST,
}
_MOST_SIZES = (MOST_FRAMES, MOST_SIDE, MOST_SIDE, 2)
_RECORDING = {
    "label": _number("the number of a class", 0, _COUNT, whole=True),
    **dict.fromkeys(("class", "told", "frames"), _TEXT),
    "shape": _Kind(
        f"[T, H, W, 2], T from 1 to {MOST_FRAMES}, H and W from 1 to {MOST_SIDE}",
        lambda value: (
            isinstance(value, list)
            and len(value) == 4
            and all(type(size) is int and 1 <= size <= most for size, most in zip(value, _MOST_SIZES, strict=True))
            and value[3] == 2
        ),
    ),
    "steps": _Optional(_Listed(_NONE_OR_MORE, 1, MOST_FRAMES)),
}


@dataclass(frozen=True, eq=False)
class Recording:
    """A recording of the run's data set, as the network is fed it.

    Attributes:
        label, class_name: of its class.
        told: how its frames were made, in words.
        steps: the time step of each frame; not every one need be here.
        frames: event counts, at most 255, uint8 [T, H, W, 2]: OFF before ON.
    """

    label: int
    class_name: str
    told: str
    steps: list[int]
    frames: np.ndarray


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: of its folder, with as many of the folders above as tell it from the others.
        config: as stored.
        epochs, updates: the rows of its logs; empty where there is none yet.
        summary: None while the run is not finished.
        cost: its compacted network's; None like ``summary``, unless it was counted since.
        dense: the log of the dense run that it is compared with; empty if there is none.
        environment: what each of its starts ran in; empty where that was not stored.
        recording: None where none was stored: the data set is not of events.
    """

    name: str
    config: dict[str, Any]
    epochs: Rows
    updates: Rows
    summary: dict[str, Any] | None
    cost: CostReport | None
    dense: Rows
    environment: Rows = field(default_factory=list)
    recording: Recording | None = None

    @property
    def channels(self) -> dict[str, int]:
        """Group -> all of its channels. No update touched the groups that cannot be pruned."""
        first = self.updates[0]["groups"] if self.updates else {}
        active = self.epochs[-1]["active"] if self.epochs else {}
        return {name: first[name]["before"] if name in first else count for name, count in active.items()}


def read_runs(paths: list[Path]) -> list[Run]:
    """Several runs, each once, in the order given.

    Raises:
        ValueError: a folder holds no run, or a file in it is damaged; the message names it.
        OSError: a file cannot be read.
    """
    folders = list(dict.fromkeys(path.resolve() for path in paths))
    depth = 1
    while len({folder.parts[-depth:] for folder in folders}) < len(folders):
        depth += 1
    return [read_run(folder, "/".join(folder.parts[-depth:])) for folder in folders]


def read_run(path: Path, name: str) -> Run:
    """One run; see :func:`read_runs`."""
    try:
        if not (path / "config.json").exists():
            raise ValueError(f"run: expected the folder of a run, got {path} (no config.json)")
    except OSError as error:
        raise ValueError(f"run: expected the folder of a run, got {path} ({error.strerror})") from error
    config = _object(path / "config.json", _CONFIG)
    _PATH.check(reference := config.get("reference"), f"{path / 'config.json'}: reference")
    file = path / "updates.jsonl"
    updates = _rows(file, _UPDATE)
    for number, update in enumerate(updates, 1):
        for group, change in update["groups"].items():
            _check_scores(change["scores"], f"{_place(file, number)}: groups.{group:.100}.scores")
    try:
        check_channels(updates)
    except ValueError as error:
        raise ValueError(f"{file}, {error}") from error
    dense = path / "dense" if reference == "train" else Path(reference) if reference else None
    summary = read_summary(path)
    starts = path / "environment.json"
    return Run(
        name=name,
        config=config,
        epochs=_rows(path / "metrics.jsonl", _EPOCH),
        updates=updates,
        summary=summary,
        cost=None if summary is None else CostReport.from_dict(summary["cost"]),
        dense=[] if dense is None or dense == path else _dense_rows(dense, path / "config.json"),
        environment=_object(starts, _Listed(_START, 1)) if starts.exists() else [],
        recording=_read_recording(path / "recording.json"),
    )


def read_summary(path: Path) -> dict[str, Any] | None:
    """What the run in the folder ``path`` measured at its end; None while it is not finished.

    Raises:
        ValueError: the file is damaged; the message names it.
        OSError: it cannot be read.
    """
    file = path / "summary.json"
    if not file.exists():
        return None
    summary = _object(file, _SUMMARY)
    twin = summary["dense"]
    if twin is not None and len({twin[name] is None for name in _DENSE}) > 1:
        raise ValueError(f"{file}: dense: expected {', '.join(_DENSE)}, or none of them")
    return summary


@dataclass(frozen=True)
class Accuracies:
    """A run's accuracy over its epochs, in [0, 1].

    Attributes:
        split: what it was measured on: ``validation`` images where the run set some aside, else those of the ``test``.
        rows: of the epochs that it was measured after.
        values: after each.
    """

    split: str
    rows: Rows
    values: list[float]


def accuracies(rows: Rows) -> Accuracies:
    """The accuracy that a log tells of most of its epochs."""
    told = {split: [row for row in rows if f"{split}_accuracy" in row] for split in _SPLITS}
    split = max(_SPLITS, key=lambda split: len(told[split]))
    return Accuracies(split, told[split], [row[f"{split}_accuracy"] for row in told[split]])


def last_accuracy(rows: Rows) -> tuple[str, float] | None:
    """The newest accuracy of a log and what it was measured on; None where none was measured."""
    for row in reversed(rows):
        for split in _SPLITS:
            if f"{split}_accuracy" in row:
                return split, row[f"{split}_accuracy"]
    return None


#: Where a row has both, the first is told.
_SPLITS = ("test", "validation")


def _dense_rows(folder: Path, config: Path) -> Rows:
    """The log of the dense run in the folder that ``config`` names."""
    try:
        return _rows(folder / "metrics.jsonl", _EPOCH)
    except (OSError, UnicodeEncodeError) as error:  # not readable, or no path
        raise ValueError(f"{config}: reference: expected the folder of a run ({error!s:.200})") from error


def _read_recording(file: Path) -> Recording | None:
    """What the file holds; None where it does not exist."""
    if not file.exists():
        return None
    held = _object(file, _RECORDING)
    shape, text = held["shape"], held["frames"]
    try:
        counts = base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii.Error is one
        raise ValueError(f"{_place(file)}: frames: expected base64 ({error}), got {text!r:.60}") from error
    if len(counts) != math.prod(shape):
        raise ValueError(f"{_place(file)}: frames: expected {math.prod(shape):,} bytes, got {len(counts):,}")
    steps = held.get("steps", list(range(shape[0])))
    if len(steps) != shape[0] or steps != sorted(set(steps)):
        raise ValueError(f"{_place(file)}: steps: expected {shape[0]} numbers in rising order, got {steps!r:.60}")
    frames = np.frombuffer(counts, dtype=np.uint8).reshape(shape)
    return Recording(held["label"], held["class"], held["told"], steps, frames)


def _check_scores(scores: dict[str, Any], place: str) -> None:
    """ValueError unless the two histograms have the same bins, from ``low`` to ``high``."""
    if len(scores["kept"]) != len(scores["pruned"]):
        raise ValueError(f"{place}: expected kept and pruned to be of the same length")
    low, high = scores["low"], scores["high"]
    if (low is None) != (high is None) or (low is not None and low > high):
        raise ValueError(f"{place}: expected low <= high, or neither, got {low} and {high}")


def _object(file: Path, kind: Any) -> Any:
    value = _parsed(read_whole(file, MAX_BYTES), _place(file))
    _check(value, kind, _place(file), "")
    return value


def _rows(file: Path, kind: Any) -> Rows:
    """The rows of a log; none where it does not exist. A last line without its end is still being written."""
    if not file.exists():
        return []
    rows = []
    for number, line in enumerate(read_whole(file, MAX_BYTES).split(b"\n")[:-1], 1):
        place = _place(file, number)
        rows.append(_parsed(line, place))
        _check(rows[-1], kind, place, "")
    return rows


def _parsed(text: bytes, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: damaged ({error})") from error


def _check(value: Any, kind: Any, place: str, path: str) -> None:
    """ValueError, naming the place and the path in it, where a value is not of its kind, or one of its parts is not."""
    here = f"{place}: {path}" if path else place
    match kind:
        case _Kind():
            kind.check(value, here)
        case _Maybe():
            if value is not None:
                _check(value, kind.kind, place, path)
        case _Listed():
            if not isinstance(value, list) or not kind.least <= len(value) <= kind.most:
                raise ValueError(f"{here}: expected a list of {kind.least} to {kind.most} values, got {value!r:.100}")
            for number, part in enumerate(value):
                _check(part, kind.kind, place, f"{path}[{number}]")
        case _:
            if not isinstance(value, dict):
                raise ValueError(f"{here}: expected a JSON object, got {value!r:.100}")
            if isinstance(kind, _Named):
                if not 1 <= len(value) <= _MOST:
                    raise ValueError(f"{here}: expected 1 to {_MOST} names, got {len(value)}")
                kind = dict.fromkeys(value, kind.kind)
            for name, part in kind.items():
                inner = f"{path}.{name:.100}" if path else f"{name:.100}"
                if isinstance(part, _Optional):
                    if name not in value:
                        continue
                    part = part.kind
                if name not in value:
                    expected = part.expected if isinstance(part, _Kind) else "a value"
                    raise ValueError(f"{place}: {inner}: expected {expected}, got nothing")
                _check(value[name], part, place, inner)


def _place(file: Path, line: int | None = None) -> str:
    return str(file) if line is None else f"{file}, line {line}"
