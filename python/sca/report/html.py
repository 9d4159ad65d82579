"""Runs as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..pictures import DARK, LIGHT
from ..units import count
from . import cost as costs
from . import figures
from .channels import active_sets, churn, jaccard, overlaps, rank_correlations, recorded
from .comparison import NOT_MEASURED, comparison
from .figures import Point
from .runs import Run, last_accuracy
from .words import (
    RANK_WORDS,
    channel_words,
    churn_words,
    conclusion,
    firing_words,
    overlap_words,
    recording_words,
    score_words,
    training_words,
)

__all__ = ["conclusion", "page"]


def page(runs: list[Run]) -> str:
    """The whole document.

    Args:
        runs: at least one, as :func:`sca.report.runs.read_runs` reads them.

    Raises:
        ImportError: matplotlib or jinja2 is missing.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise ImportError("a report needs jinja2: pip install 'sca_kernels[train]'") from error
    templates = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=templates, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    keys = [_letters(number) for number in range(len(runs))] if len(runs) > 1 else [""]
    return environment.get_template("page.html").render(
        runs=[_section(run, key) for run, key in zip(runs, keys, strict=True)],
        trade_offs=_trade_offs(runs, keys),
        overlaps=_overlaps(runs, keys),
        compared=_compared(runs, keys) if len(runs) > 1 else None,
        differences=_differences(runs, keys) if len(runs) > 1 else None,
        light=LIGHT,
        dark=DARK,
    )


def _letters(number: int) -> str:
    """0 -> A, 25 -> Z, 26 -> AA."""
    rest, place = divmod(number, 26)
    return (_letters(rest - 1) if rest else "") + chr(ord("A") + place)


def _section(run: Run, key: str) -> dict[str, Any]:
    """What the template shows of one run."""
    summary = run.summary
    return {
        "key": key,
        "name": run.name,
        "conclusion": conclusion(run),
        "summary": None if summary is None else comparison(summary),
        "notes": [] if summary is None else summary["notes"],
        "figures": _figures(run),
        "cost": None if run.cost is None else costs.cells(run.cost),
        "cost_caption": None if run.cost is None else costs.caption(run.cost),
        "config": [[name, _value(value)] for name, value in run.config.items()],
        "environment": [[name, _value(value)] for name, value in (run.environment or [{}])[-1].items()],
        "starts": len(run.environment),
    }


#: Title, what draws it, words.
_Figure = tuple[str, Callable[[Run, str], str], str]


def _figures(run: Run) -> list[dict[str, str]]:
    shown = _of_logs(run) if run.epochs else []
    if run.recording is not None:
        shown.append(("A recording as frames", figures.recording, recording_words(run)))
    return [{"title": title, "svg": draw(run, title), "words": words} for title, draw, words in shown]


def _of_logs(run: Run) -> list[_Figure]:
    shown = [
        ("Training", figures.training, training_words(run)),
        ("Channels kept", figures.channels, channel_words(run)),
    ]
    if run.epochs[-1]["firing_rates"]:
        shown.append(("Firing rates", figures.firing, firing_words(run)))
    if recorded(run.updates):
        moves = churn(run.updates)
        shown.append(("Churn", partial(figures.churned, churn=moves), churn_words(moves)))
    correlations = {
        name: rank_correlations(run.updates, name) for name in (run.updates or [{"groups": {}}])[0]["groups"]
    }
    correlations = {name: values for name, values in correlations.items() if any(v is not None for v in values)}
    if correlations:
        shown.append(("Ranks from update to update", partial(figures.ranks, correlations=correlations), RANK_WORDS))
    for title, update in _telling_updates(run).items():
        shown.append((title, partial(figures.scores, update=update), score_words(run, update)))
    return shown


def _telling_updates(run: Run) -> dict[str, dict[str, Any]]:
    """The last update, and the one that pruned most if that is another: the last ones of a schedule hardly cut."""
    if not run.updates:
        return {}
    largest = max(run.updates, key=lambda update: sum(group["pruned"] for group in update["groups"].values()))
    first = {} if largest is run.updates[-1] else {"Scores at the largest cut": largest}
    return {**first, "Scores at the last update": run.updates[-1]}


#: More runs than these would be a matrix that nobody reads.
_MATRIX = 12


def _overlaps(runs: list[Run], keys: list[str]) -> list[dict[str, str]]:
    """How far the runs of each network that there are several of kept the same channels."""
    families: dict[Any, dict[str, dict[str, np.ndarray]]] = {}
    for run, key in zip(runs, keys, strict=True):
        sets = active_sets(run.updates)
        if sets:
            widths = tuple((name, len(mask)) for name, mask in sets.items())
            families.setdefault((run.config["model"], run.config["data"], widths), {})[key] = sets
    shown = []
    for (model, data, _), members in families.items():
        pairs = list(combinations(members, 2))
        if not pairs:
            continue
        told = [overlaps(members[a], members[b]) for a, b in pairs]
        title = f"Channels shared by runs {', '.join(members)}"
        words = overlap_words(f"{model} on {data}", len(pairs))
        shown.append({"title": title, "svg": figures.overlap(title, told), "words": words})
        if 2 < len(members) <= _MATRIX:
            joined = {key: np.concatenate(list(sets.values())) for key, sets in members.items()}
            matrix = {(a, b): jaccard(joined[a], joined[b]) for a, b in pairs}
            title = f"Channels shared by each two of {', '.join(members)}"
            words = "All layers together: shared channels / all that are active in either run."
            shown.append({"title": title, "svg": figures.agreement(title, list(members), matrix), "words": words})
    return shown


def _trade_offs(runs: list[Run], keys: list[str]) -> list[dict[str, str]]:
    """Accuracy against connectivity and against SynOps."""
    by_weights, by_synops = [], []
    for run, key in zip(runs, keys, strict=True):
        if run.summary is not None:
            dense, small = run.summary["dense"], run.summary["compacted"]
            columns = [(small, key or ("dense" if dense is None else "compacted"), dense is None)]
            if dense is not None and dense["accuracy"] is not None:
                columns.append((dense, "dense", True))
            for column, label, is_dense in columns:
                by_weights.append(Point(label, column["connectivity"], column["accuracy"], is_dense))
                by_synops.append(Point(label, column["synops"], column["accuracy"], is_dense))
        elif known := last_accuracy(run.epochs):
            split, accuracy = known
            label = f"{key} unfinished".strip() + ("" if split == "test" else f", {split}")
            by_weights.append(Point(label, run.epochs[-1]["connectivity"], accuracy, finished=False))
    shown = []
    for points, cost in (by_weights, "connectivity"), (by_synops, "SynOps"):
        if points:
            title = f"Accuracy against {cost}"
            svg = figures.trade_off(_distinct(points), title, percent=cost == "connectivity")
            kinds = {(point.dense, point.finished) for point in points}
            words = "; ".join(meaning for kind, meaning in _MARKS.items() if kind in kinds)
            shown.append({"title": title, "svg": svg, "words": f"{words[0].upper()}{words[1:]}."})
    return shown


#: (dense, finished) -> what the mark means
_MARKS = {
    (False, True): "discs: pruned networks, compacted",
    (True, True): "squares: dense networks",
    (False, False): "rings: runs that are not finished",
}


def _distinct(points: list[Point]) -> list[Point]:
    """Each place once: runs that share a dense twin bring it along each."""
    named = [p for p in points if p.label != "dense"]
    others = {(p.x, p.accuracy): p for p in points if p.label == "dense"}
    taken = {(p.x, p.accuracy) for p in named}
    return named + [p for place, p in others.items() if place not in taken]


def _compared(runs: list[Run], keys: list[str]) -> list[list[str]]:
    """Headers, and a line for each run."""
    head = ["", "Run", "Test accuracy", "Change", "Connectivity", "SynOps", "Share", "Training", "Inference"]
    return [head, *([key, run.name, *_result(run)] for run, key in zip(runs, keys, strict=True))]


def _result(run: Run) -> list[str]:
    if run.summary is None:
        if not run.epochs:
            return ["unfinished", *[""] * 6]
        split, accuracy = last_accuracy(run.epochs) or ("test", None)
        told = "" if accuracy is None else f"{accuracy:.2%}" + ("" if split == "test" else f" ({split})")
        return [told, "unfinished", f"{run.epochs[-1]['connectivity']:.1%}", *[""] * 4]
    small = run.summary["compacted"]
    told = {label: cells for label, *cells in comparison(run.summary)[1]}
    changed = "test accuracy", "SynOps per sample", "training (samples/s)", "inference (samples/s)"
    if run.summary["dense"] is None:
        accuracy, synops, training, inference = "dense", "", "", ""
    else:
        accuracy, synops, training, inference = (told[label][-1] or NOT_MEASURED for label in changed)
    return [
        f"{small['accuracy']:.2%}",
        accuracy,
        f"{small['connectivity']:.1%}",
        count(small["synops"]),
        synops,
        training,
        inference,
    ]


def _differences(runs: list[Run], keys: list[str]) -> list[list[str]]:
    """The settings in which the runs differ: headers, and a line for each."""
    names = dict.fromkeys(name for run in runs for name in run.config)
    values = [[name, *(_value(run.config.get(name)) for run in runs)] for name in names]
    return [["setting", *keys], *(row for row in values if len(set(row[1:])) > 1)]


def _value(value: Any) -> str:
    """A setting as text."""
    if isinstance(value, dict):
        return ", ".join(f"{name} = {_plain(of)}" for name, of in value.items())
    return _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)
