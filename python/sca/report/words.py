"""What a report says in words: a run in a sentence, and what its figures show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..units import count
from . import figures
from .channels import Churn
from .comparison import MEANINGS, NOT_MEASURED
from .figures import SATURATED, SILENT
from .runs import Run, accuracies, last_accuracy

__all__ = [
    "RANK_WORDS",
    "channel_words",
    "churn_words",
    "conclusion",
    "firing_words",
    "overlap_words",
    "recording_words",
    "score_words",
    "training_words",
]


def conclusion(run: Run) -> str:
    """The run in one sentence."""
    config, summary = run.config, run.summary
    what = f"{config['model']} on {config['data']} with T = {config['time_steps']}"
    if summary is None:
        done = f"Unfinished, {len(run.epochs)} of {config['epochs']} epochs: {what}"
        if not run.epochs:
            return f"{done} has not been tested yet."
        last, (split, accuracy) = run.epochs[-1], last_accuracy(run.epochs) or ("", None)
        reached = "has not been tested yet" if accuracy is None else f"so far reaches {accuracy:.2%} {split} accuracy"
        return (
            f"{done} {reached}, at a density of {last['density']:.1%} and a connectivity of {last['connectivity']:.1%}."
        )
    dense, small = summary["dense"], summary["compacted"]
    if dense is None:
        cost = f"{count(small['synops'])} SynOps per sample"
        return f"The dense {what} reaches {small['accuracy']:.2%} test accuracy at {cost}."
    speed = (
        f"it trains {_times(dense, small, 'training')} and infers {_times(dense, small, 'inference')} as fast as"
        " the dense network"
    )
    if dense["accuracy"] is None:
        return (
            f"At a connectivity of {small['connectivity']:.1%}, {what} reaches {small['accuracy']:.2%} test accuracy at"
            f" {count(small['synops'])} SynOps per sample; {speed}, whose accuracy was {NOT_MEASURED}."
        )
    points = round(100 * (small["accuracy"] - dense["accuracy"]), 2)
    against = f"{abs(points):.2f} points {'above' if points > 0 else 'below'}" if points else "the same as"
    return (
        f"At a connectivity of {small['connectivity']:.1%}, with {small['synops'] / dense['synops']:.1%} of the dense"
        f" network's SynOps, {what} reaches {small['accuracy']:.2%} test accuracy, {against} that network; {speed}."
    )


def _times(dense: dict[str, Any], small: dict[str, Any], what: str) -> str:
    return f"{small[what]['median'] / dense[what]['median']:.2f} times"


def training_words(run: Run) -> str:
    """What the curves over the epochs show."""
    split = accuracies(run.epochs).split
    words = (
        f"Accuracy is that on the {split} images, after an epoch's cuts; {MEANINGS}; throughput is that of the epoch's"
        " training steps."
    )
    return words + (" Grey: the dense run that this one is compared with." if run.dense else "")


def churn_words(moves: Sequence[Churn]) -> str:
    """How much went, and how much of it came back."""
    pruned, regrown, returned = (sum(getattr(one, what) for one in moves) for what in ("pruned", "regrown", "returned"))
    share = f", {returned / pruned:.0%}" if pruned else ""
    return (
        f"Of {pruned:,} channels pruned, {returned:,} came back at a later update{share} (paler); {regrown:,} were"
        " regrown in all. What the last updates pruned had the least time to."
    )


RANK_WORDS = (
    "Spearman's correlation of a layer's scores at each update with those at the next, over the channels that were"
    " active at both: full height, 1, where their order stayed, 0 where nothing was left of it; orange below 0. On the"
    " right, the median."
)


def channel_words(run: Run) -> str:
    """What the rows of kept channels show, and what could not be pruned."""
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


def score_words(run: Run, update: dict[str, Any]) -> str:
    """What the histograms of an update's scores show."""
    per = " per SynOp" if run.config.get("allocation") == "synops" else ""
    return (
        f"Step {update['step']:,}, criterion {run.config.get('criterion')}{per}. Blue: channels kept; orange: channels"
        " cut; tick: the lowest score kept, where any was cut. On the right, kept / ranked. Each layer's highest bar is"
        " equally high."
    )


def firing_words(run: Run) -> str:
    """Which layers are dead, or nearly so."""
    rates = run.epochs[-1]["firing_rates"]
    found = {state: [name for name, rate in rates.items() if figures.verdict(rate) == state] for state in _STATES}
    flagged = [f"{words}: {', '.join(found[state])}." for state, words in _STATES.items() if found[state]]
    fires = f"No layer is dead: each fires at {SILENT:.1%} or more."
    return f"Epoch {run.epochs[-1]['epoch']}, over the active channels. " + (" ".join(flagged) or fires)


_STATES = {
    "dead": "Dead, without a single spike",
    "nearly silent": f"Nearly silent, below {SILENT:.1%}",
}


def recording_words(run: Run) -> str:
    """What the recording is of, and what its pictures show."""
    shown = run.recording
    named = "" if shown.class_name == str(shown.label) else f", {shown.class_name}"
    pixels = shown.frames.any(axis=-1)
    return (
        f"Class {shown.label}{named}: {shown.told}. {shown.frames.sum():,} events are shown; {pixels.mean():.1%} of the"
        " frames' pixels had any. Blue: ON, the pixel grew brighter; orange: OFF, it grew darker; grey: both. The more"
        f" events, the stronger, up to the {SATURATED}th percentile of the pixels that had any."
    )


def overlap_words(runs: str, pairs: int) -> str:
    """What bars of overlapping active channels show; ``runs`` names them."""
    spread = ", line: from the least to the most" if pairs > 1 else ""
    return (
        f"{runs}: Jaccard overlap of the channels active in the end, mean over the pairs of runs{spread}; orange tick,"
        " and in brackets: that of random sets of these sizes. Runs of different seeds begin with other weights,"
        " and a channel's place means nothing there: expect more than chance only of runs that begin alike."
    )
