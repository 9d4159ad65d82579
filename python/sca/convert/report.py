"""What a conversion did, and why not more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

__all__ = ["ConversionError", "ConversionReport", "Converted", "Parity", "Reason", "Speed"]


class ConversionError(ValueError):
    """A network could not be converted, and is as it was."""


class Reason(NamedTuple):
    """Why a module was not converted: a kind ("class", "option", "surrogate", "layer", "parity"), what it is about in
    words, and what could be done."""

    kind: str
    text: str
    remedy: str = "it stays as it is"

    def __str__(self) -> str:
        return f"{self.text}; {self.remedy}"


class Converted(NamedTuple):
    """One module that was converted.

    Attributes:
        name: in the model.
        was, now: the class that it had, and the one of ``sca_kernels.nn`` whose place it takes.
        arguments: those of a neuron, in words.
        fused_with: of a neuron, the batch norm that it computes, too; of that batch norm, the neuron; else "".
    """

    name: str
    was: str
    now: str
    arguments: str = ""
    fused_with: str = ""


class Parity(NamedTuple):
    """How far the converted network is from the original, over passes in training and evaluation.

    Attributes:
        spikes: of all converted neurons, compared one by one.
        differ: of these, those that differ.
        untested: converted neurons that never or always fired in these passes: what is known of them is that they are
            the original alone, which each neuron is compared with before.
        output, gradients, buffers: largest difference, relative to the largest value.
        dtype: that the passes ran in.
        exact: the same in float64, spikes, outputs and gradients: the largest difference; None where the original does
            not run in it.
    """

    spikes: int
    differ: int
    untested: tuple[str, ...]
    output: float
    gradients: float
    buffers: float
    dtype: str
    exact: float | None


class Speed(NamedTuple):
    """Medians of a training step and of an inference pass, in ms, and how often the original's time they are."""

    training: float
    inference: float
    training_ratio: float
    inference_ratio: float


@dataclass
class ConversionReport:
    """What :func:`sca.convert` did; as a string, a table.

    Attributes:
        converted: every module that was, in the order of the model.
        refused: by name, why a module that could have been was not.
        time: how its activations lie: "TN" (time first), "single" (one step a call).
        parity: see :class:`Parity`; with the weights' layout as it was.
        channels_last: the same with convolutions' weights in channels_last, where sums have another order, if that is
            what they were left in; None: they have the layout that they had.
        state_dict_equal: whether keys, shapes and values of the state_dict are the original's.
        prunable: how many groups of channels can be pruned, of how many, and the channels in them.
        memory: MiB that a training pass keeps for its backward pass, before and after.
        speed: with ``measure=True``, else None.
    """

    converted: tuple[Converted, ...]
    refused: dict[str, Reason]
    time: str
    parity: Parity | None
    channels_last: Parity | None
    state_dict_equal: bool
    prunable: tuple[int, int, int]
    memory: tuple[float, float] | None
    speed: Speed | None
    _revert: Callable[[], nn.Module] | None = field(default=None, repr=False)

    def revert(self) -> nn.Module:
        """Make the converted model what it was: the same modules, of the classes that they had; returns it."""
        if self._revert is None:
            raise ValueError("revert: expected a report of a conversion that can be undone, got one without")
        return self._revert()

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = {name: value for name, value in vars(self).items() if name != "_revert"}
        for name in ("parity", "channels_last", "speed"):
            found[name] = None if found[name] is None else found[name]._asdict()
        found["converted"] = [row._asdict() for row in self.converted]
        found["refused"] = {name: reason._asdict() for name, reason in self.refused.items()}
        return found

    def __str__(self) -> str:
        rows = [("module", "was", "is now", "with")]
        for row in self.converted:
            beside = f"in {row.fused_with}" if row.fused_with and not row.arguments else row.arguments
            rows.append((row.name or "(the model)", row.was, row.now, beside))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [
            "  ".join([*(text.ljust(w) for text, w in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows
        ]
        lines += [f"refused: {name}: {reason}" for name, reason in self.refused.items()]
        if self.parity is not None:
            lines += _parity_lines("parity", self.parity)
        if self.channels_last is not None:
            lines += _parity_lines("weights are channels_last now", self.channels_last)[:1]
        groups, of, channels = self.prunable
        lines.append(f"prunable: {groups} of {of} groups, {channels} channels")
        if self.memory is not None:
            lines.append(f"kept for the backward pass: {self.memory[0]:.1f} -> {self.memory[1]:.1f} MiB")
        if self.speed is not None:
            s = self.speed
            lines.append(
                f"a training step takes {s.training:.1f} ms, the original {s.training_ratio:.2f} times that; "
                f"inference {s.inference:.1f} ms, {s.inference_ratio:.2f} times"
            )
            slower = [
                name for name, ratio in (("training", s.training_ratio), ("inference", s.inference_ratio)) if ratio < 1
            ]
            if slower:
                lines.append(f"slower than the original in {' and '.join(slower)}: try depth='neurons'")
        return "\n".join(lines)


def _parity_lines(title: str, parity: Parity) -> list[str]:
    compared = f"{parity.differ} of {parity.spikes:,} spikes differ, " if parity.spikes else ""
    exact = "" if parity.exact is None else f"; in float64 {parity.exact:.1e}"
    lines = [f"{title}: {compared}outputs by {parity.output:.1e}, gradients by {parity.gradients:.1e}{exact}"]
    if parity.untested:
        silent = ", ".join(parity.untested)
        lines.append(f"compared alone, not by this example: {silent} never fired in it, or always")
    return lines
