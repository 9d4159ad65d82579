"""Result files: written whole, with the conditions they were taken under; and what is read out of them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from sca.bench.conditions import conditions as common_conditions
from sca.machine import checkout

FOLDER = Path(__file__).parent / "results"
DOCUMENT = Path(__file__).parent / "RESULTS.md"
NOT_MEASURED = "not measured"
HEAD = """# Results

Written by `python -m benchmarks.run --readme` from the files in results/. A ratio is the peer's time over ours or,
where the bar is an upper bound, ours over the peer's: the median over rounds in which both ran in turn, in one process.
"""
MARKS = ("<!-- results: written by `python -m benchmarks.run --readme` -->", "<!-- /results -->")


def conditions(command: str, allocator: str) -> dict[str, Any]:
    """Everything that a figure depends on and that does not stand in the case itself."""
    measured = "../sca_kernels", "../csrc", "../python", "../setup.py", ".", ":!results"
    return {**common_conditions(command), **checkout(FOLDER.parent, *measured), "allocator": allocator}


def store(
    folder: Path, case: str, work: str, unit: str, conditions: dict[str, Any], figures: list[dict[str, Any]]
) -> Path:
    """Write one result file, whole or not at all."""
    path = folder / conditions["device"] / f"{case}.json"
    _write(path, {"case": case, "work": work, "unit": unit, "conditions": conditions, "figures": figures})
    return path


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("w") as file:
        file.write(json.dumps(content, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def store_part(folder: Path, name: str, conditions: dict[str, Any], **content: Any) -> Path:
    """Add one part to the file of a day on a device, ``<device>/<date>.json``, in place of an earlier one of that name:
    a case with its figures, or the ``lines`` that another stage ended with."""
    path = folder / conditions["device"] / f"{conditions['date'][:10]}.json"
    parts = load(path)["parts"] if path.exists() else {}
    _write(path, {"parts": parts | {name: {"case": name, "conditions": conditions, **content}}})
    return path


def load(path: Path) -> dict[str, Any]:
    """Read one result file."""
    return json.loads(path.read_text())


def stored(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """All cases with figures, by device, file and case."""
    return [part for path in sorted(folder.glob("*/*.json")) for part in parts(path) if "figures" in part]


def parts(path: Path) -> list[dict[str, Any]]:
    """What a file holds: one case, or the parts of a day."""
    content = load(path)
    return list(content["parts"].values()) if "parts" in content else [content]


class Row(NamedTuple):
    """One line of the table: a figure against one party."""

    case: str
    work: str
    ours: str
    peer: str
    ratio: str
    bar: str
    reached: str


def _text(summary: dict[str, float] | str, unit: str) -> str:
    return summary if isinstance(summary, str) else f"{summary['median']:.4g} {unit}"


def _ours(figure: dict[str, Any], summary: dict[str, float] | str, unit: str) -> str:
    """Our figure, and the backend that ran it; files of before it was recorded have none."""
    backend = figure.get("backend")
    return _text(summary, unit) + (f" ({backend})" if backend else "")


def rows(result: dict[str, Any]) -> Iterator[Row]:
    """The table's lines for one result: one per bar, and one per party that has none."""
    for figure in result["figures"]:
        (name, ours), *peers = figure["parties"].items()
        if not peers:
            reached = _reached(figure.get("details", {}).get(name))
            yield Row(result["case"], figure["shape"] + reached, _ours(figure, ours, result["unit"]), "", "", "", "")
        for name, time in peers:
            bar = figure["bars"].get(name, {})
            ratio = figure["ratios"].get(name)
            spread = f"{ratio['median']:.3g} ({ratio['p20']:.3g} to {ratio['p80']:.3g})" if ratio else NOT_MEASURED
            verdict = {True: "yes", False: "no", None: NOT_MEASURED}[bar.get("reached")] if bar else ""
            yield Row(
                result["case"],
                figure["shape"],
                _ours(figure, ours, result["unit"]),
                f"{name}: {_text(time, result['unit'])}",
                spread,
                bar.get("text", ""),
                verdict,
            )


def _reached(details: dict[str, Any] | None) -> str:
    """What a run came to, of the networks that it measured."""
    columns = (details or {}).get("summary") or {}
    told = {name: columns[name]["accuracy"] for name in ("compacted", "dense") if columns.get(name)}
    return "".join(f"; {name} {accuracy:.2%}" for name, accuracy in told.items() if accuracy is not None)


def summary() -> str:
    """The README's figures: one line for each case and each party that a bar names on some device, and for SpikingJelly
    always; one column per device."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    named: dict[str, dict[str, str]] = {}  # by case, the parties and which way their ratio goes
    for result in stored():
        for figure in result["figures"]:
            peers = named.setdefault(result["case"], {})
            for name in figure["parties"]:
                if name in figure["bars"] or name.startswith("SpikingJelly"):
                    peers.setdefault(name, _direction(figure, name))
    devices = {}  # in order
    for result in stored():
        device = result["conditions"]["device"]
        devices[device] = None
        for peer, direction in named[result["case"]].items():
            barred = [figure for figure in result["figures"] if peer in figure["bars"]]
            known = [figure for figure in barred or result["figures"] if figure["ratios"].get(peer)]
            ratios = [figure["ratios"][peer]["median"] for figure in known]
            ratios = [
                ratio if _direction(figure, peer) == direction else 1 / ratio
                for figure, ratio in zip(known, ratios, strict=True)
            ]
            shown = [f"{ratio:.3g}" for ratio in (ratios if len(ratios) <= 6 else (min(ratios), max(ratios)))]
            told = (", " if len(ratios) <= 6 else " to ").join(shown) or NOT_MEASURED
            reached = sum(bool(figure["bars"][peer]["reached"]) for figure in barred)
            kind = f"{peer} / ours" if direction == ">=" else f"ours / {peer}"
            line = cells.setdefault((f"{result['case']}: {result['work']}", kind), {})
            line[device] = f"{told} ({reached} of {len(barred)})" if barred else told
    if not cells:
        return f"{NOT_MEASURED}."
    lines = ["| | ratio | " + " | ".join(devices) + " |", "| --- | --- |" + " --- |" * len(devices)]
    for (work, kind), line in cells.items():
        lines.append(f"| {work} | {kind} | " + " | ".join(line.get(d, NOT_MEASURED) for d in devices) + " |")
    return "\n".join(lines)


def _direction(figure: dict[str, Any], peer: str) -> str:
    """How a ratio's bar begins: ``>=`` of peer / ours, also where there is none; ``<=`` of ours / peer."""
    return figure["bars"].get(peer, {"text": ">="})["text"][:2]


def document() -> str:
    """All figures: per device and case one table with its conditions right below."""
    parts = []
    for result in stored():
        told = result["conditions"]
        versions = ", ".join(f"{k} {v}" for k, v in told["versions"].items() if v != "not installed")
        lines = [f"**{result['case']}: {result['work']}**", ""]
        lines += [
            "| | sca_kernels | against | ratio (p20 to p80) | bar | reached |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        lines += [f"| {r.work} | {r.ours} | {r.peer} | {r.ratio} | {r.bar} | {r.reached} |" for r in rows(result)]
        lines += [
            "",
            f"{told['device']}, {told['threads']} threads, {told['allocator']} allocator, {versions}; "
            f"commit {told['commit'][:10]}, {told['date'][:10]}; `{told['command']}`.",
        ]
        parts.append("\n".join(lines))
    return f"{HEAD}\n" + ("\n\n".join(parts) or f"{NOT_MEASURED}.") + "\n"


def spliced(text: str) -> str:
    """A document with the figures between its marks brought up to date; unchanged where it has no marks."""
    before, mark, rest = text.partition(MARKS[0])
    if not mark:
        return text
    return f"{before}{mark}\n\n{summary()}\n\n{MARKS[1]}{rest.partition(MARKS[1])[2]}"
