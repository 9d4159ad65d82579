"""Runs as one HTML page that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ..units import count
from . import figures
from .comparison import NOT_MEASURED, comparison
from .figures import SILENT, Point
from .runs import Run

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
        compared=_compared(runs, keys) if len(runs) > 1 else None,
        differences=_differences(runs, keys) if len(runs) > 1 else None,
    )


def conclusion(run: Run) -> str:
    """The run in one sentence."""
    config, summary = run.config, run.summary
    what = f"{config['model']} on {config['data']} with T = {config['time_steps']}"
    if summary is None:
        done = f"Unfinished, {len(run.epochs)} of {config['epochs']} epochs: {what}"
        if not run.epochs:
            return f"{done} has not been tested yet."
        last = run.epochs[-1]
        return (
            f"{done} so far reaches {last['test_accuracy']:.2%} test accuracy with {last['density']:.1%} of its"
            f" channels and {last['connectivity']:.1%} of its weights."
        )
    dense, small = summary["dense"], summary["compacted"]
    if dense is None:
        cost = f"{count(small['synops'])} SynOps per image"
        return f"The dense {what} reaches {small['accuracy']:.2%} test accuracy at {cost}."
    speed = (
        f"it trains {_times(dense, small, 'training')} and infers {_times(dense, small, 'inference')} as fast as"
        " the dense network"
    )
    if dense["accuracy"] is None:
        return (
            f"With {small['connectivity']:.1%} of its weights, {what} reaches {small['accuracy']:.2%} test accuracy at"
            f" {count(small['synops'])} SynOps per image; {speed}, whose accuracy was {NOT_MEASURED}."
        )
    points = round(100 * (small["accuracy"] - dense["accuracy"]), 2)
    against = f"{abs(points):.2f} points {'above' if points > 0 else 'below'}" if points else "the same as"
    return (
        f"With {small['connectivity']:.1%} of its weights and {small['synops'] / dense['synops']:.1%} of its SynOps,"
        f" {what} reaches {small['accuracy']:.2%} test accuracy, {against} the dense network; {speed}."
    )


def _times(dense: dict[str, Any], small: dict[str, Any], what: str) -> str:
    return f"{small[what]['median'] / dense[what]['median']:.2f} times"


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
        "figures": _figures(run) if run.epochs else [],
        "cost": None if run.cost is None else run.cost.cells(),
        "cost_caption": None if run.cost is None else run.cost.caption,
        "config": [[name, _value(value)] for name, value in run.config.items()],
    }


def _figures(run: Run) -> list[dict[str, str]]:
    shown = [
        ("Training", figures.training, _training_words(run)),
        ("Channels kept", figures.channels, _channel_words(run)),
    ]
    if run.epochs[-1]["firing_rates"]:
        shown.append(("Firing rates", figures.firing, _firing_words(run)))
    for title, update in _telling_updates(run).items():
        shown.append((title, partial(figures.scores, update=update), _score_words(run, update)))
    return [{"title": title, "svg": draw(run, title), "words": words} for title, draw, words in shown]


def _telling_updates(run: Run) -> dict[str, dict[str, Any]]:
    """The last update, and the one that pruned most if that is another: the last ones of a schedule hardly cut."""
    if not run.updates:
        return {}
    largest = max(run.updates, key=lambda update: sum(group["pruned"] for group in update["groups"].values()))
    first = {} if largest is run.updates[-1] else {"Scores at the largest cut": largest}
    return {**first, "Scores at the last update": run.updates[-1]}


def _training_words(run: Run) -> str:
    words = "Accuracy is tested after each epoch's cuts; throughput is that of the epoch's training steps."
    return words + (" Grey: the dense run that this one is compared with." if run.dense else "")


def _channel_words(run: Run) -> str:
    if not run.updates:
        return "Nothing was pruned."
    pruned, regrown = (
        sum(g[what] for u in run.updates for g in u["groups"].values()) for what in ("pruned", "regrown")
    )
    words = (
        f"Blue: the share of a layer's channels that is active; on the right, active / all channels after the last of"
        f" {len(run.updates)} updates, which pruned {pruned:,} channels and regrew {regrown:,} in all."
    )
    fixed = [name for name in run.channels if name not in run.updates[-1]["groups"]]
    return words + (f" Not prunable: {', '.join(fixed)}." if fixed else "")


def _score_words(run: Run, update: dict[str, Any]) -> str:
    per = " per SynOp" if run.config.get("allocation") == "synops" else ""
    return (
        f"Step {update['step']:,}, criterion {run.config.get('criterion')}{per}. Blue: channels kept; orange: channels"
        " cut; tick: the lowest score kept, where any was cut. On the right, kept / ranked. Each layer's highest bar is"
        " equally high."
    )


def _firing_words(run: Run) -> str:
    rates = run.epochs[-1]["firing_rates"]
    found = {state: [name for name, rate in rates.items() if figures.verdict(rate) == state] for state in _STATES}
    flagged = [f"{words}: {', '.join(found[state])}." for state, words in _STATES.items() if found[state]]
    fires = f"No layer is dead: each fires at {SILENT:.1%} or more."
    return f"Epoch {run.epochs[-1]['epoch']}, over the active channels. " + (" ".join(flagged) or fires)


_STATES = {
    "dead": "Dead, without a single spike",
    "nearly silent": f"Nearly silent, below {SILENT:.1%}",
}


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
        elif run.epochs:
            last = run.epochs[-1]
            label = f"{key} unfinished".strip()
            by_weights.append(Point(label, last["connectivity"], last["test_accuracy"], finished=False))
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
        last = run.epochs[-1]
        return [f"{last['test_accuracy']:.2%}", "unfinished", f"{last['connectivity']:.1%}", *[""] * 4]
    small = run.summary["compacted"]
    told = {label: cells for label, *cells in comparison(run.summary)[1]}
    changed = "test accuracy", "SynOps per image", "training (samples/s)", "inference (samples/s)"
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
