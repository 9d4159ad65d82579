"""What a run's folder tells: plain JSON, checked once, so that what draws it need not doubt it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from .comparison import comparison
from .cost import CostReport

__all__ = ["Run", "read_run", "read_runs"]

Rows = list[dict[str, Any]]

# The fields that a page needs, and what they are.
_CONFIG = {"model": str, "data": str, "epochs": Real, "time_steps": Real}
_EPOCH = {
    **dict.fromkeys(("epoch", "step", "test_accuracy", "density", "connectivity", "samples_per_second"), Real),
    "active": dict,
    "firing_rates": dict,
}
_UPDATE = {"step": Real, "active": dict, "groups": dict}
_CHANGE = {"before": Real, "pruned": Real, "regrown": Real, "scores": dict}
_NUMBER_OR_NONE = (Real, type(None))
_SCORES = {"kept": list, "pruned": list, **dict.fromkeys(("low", "high", "cut"), _NUMBER_OR_NONE)}


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: of its folder, with as many of the folders above as tell it from the others.
        config: as stored.
        epochs, updates: the rows of its logs; empty where there is none yet.
        summary: None while the run is not finished.
        cost: its compacted network's; None like ``summary``.
        dense: the log of the dense run that it is compared with; empty if there is none.
    """

    name: str
    config: dict[str, Any]
    epochs: Rows
    updates: Rows
    summary: dict[str, Any] | None
    cost: CostReport | None
    dense: Rows

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
    file = path / "updates.jsonl"
    updates = _rows(file, _UPDATE)
    for number, update in enumerate(updates, 1):
        for change in update["groups"].values():
            _check(_check(change, _CHANGE, file, number)["scores"], _SCORES, file, number)
    reference = config.get("reference")
    dense = path / "dense" if reference == "train" else Path(reference) if reference else None
    summary, cost = None, None
    if (path / "summary.json").exists():
        summary = _object(path / "summary.json", {"compacted": dict, "notes": list, "cost": dict})
        try:
            comparison(summary)
            cost = CostReport.from_dict(summary["cost"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path / 'summary.json'}: not the summary of a run ({error!r})") from error
    return Run(
        name=name,
        config=config,
        epochs=_rows(path / "metrics.jsonl", _EPOCH),
        updates=updates,
        summary=summary,
        cost=cost,
        dense=[] if dense is None or dense == path else _rows(dense / "metrics.jsonl", _EPOCH),
    )


def _object(file: Path, fields: dict[str, Any]) -> dict[str, Any]:
    return _check(_parsed(file.read_bytes(), file, None), fields, file, None)


def _rows(file: Path, fields: dict[str, Any]) -> Rows:
    """The rows of a log; none where it does not exist. A last line without its end is still being written."""
    if not file.exists():
        return []
    lines = file.read_bytes().split(b"\n")[:-1]
    return [_check(_parsed(line, file, at), fields, file, at) for at, line in enumerate(lines, 1)]


def _parsed(text: bytes, file: Path, line: int | None) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{_place(file, line)}: damaged ({error})") from error


def _check(value: Any, fields: dict[str, Any], file: Path, line: int | None) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{_place(file, line)}: expected a JSON object, got {type(value).__name__}")
    for name, kind in fields.items():
        if name not in value or not isinstance(value[name], kind):
            got = "nothing" if name not in value else repr(value[name])
            raise ValueError(f"{_place(file, line)}: {name}: expected a {_KINDS[kind]}, got {got}")
    return value


_KINDS = {Real: "number", _NUMBER_OR_NONE: "number or null", str: "string", dict: "JSON object", list: "list"}


def _place(file: Path, line: int | None) -> str:
    return str(file) if line is None else f"{file}, line {line}"
