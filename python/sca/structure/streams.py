"""Channels on their way through a network: which of them are tied, who makes, carries and reads them, and what forbids
to prune them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from sca_kernels.nn.group import ROLES

from .groups import computed_parameters, weight_dims

__all__ = ["Channels", "Part", "Stream", "Streams", "Unlisted", "can_carry"]


class Stream:
    """Channels that live or die together; a node of a union-find forest.

    Attributes:
        channels: how many.
        origin: what they are, in words, where no layer of ours makes them.
        reasons: why they cannot be pruned, each once; none where they can.
        additions: where they were added to others.
    """

    def __init__(self, channels: int, origin: str = "") -> None:
        self.channels, self.origin = channels, origin
        self.reasons: dict[str, None] = {}
        self.additions: dict[str, None] = {}
        self._into: Stream | None = None

    @property
    def root(self) -> Stream:
        """The stream that this one became part of, or itself."""
        stream = self
        while stream._into is not None:
            stream = stream._into
        return stream

    def unite(self, other: Stream) -> None:
        """Tie the channels of two streams of one size, index by index."""
        ours, theirs = self.root, other.root
        if ours is not theirs:
            theirs._into = ours
            ours.reasons |= theirs.reasons
            ours.additions |= theirs.additions


class Part(NamedTuple):
    """A stream among those that a tensor lists; ``silent``: whether zero is all that a dormant channel can hold, since
    a neuron came last.
    """

    stream: Stream
    silent: bool


@dataclass(frozen=True)
class Channels:
    """Dimension ``dim`` (from the front) of a tensor lists the channels of the parts, one part behind the other,
    ``block`` consecutive entries for each channel.
    """

    dim: int
    parts: tuple[Part, ...]
    block: int = 1

    @property
    def size(self) -> int:
        """Channels of all parts."""
        return sum(part.stream.channels for part in self.parts)

    def at(self, dim: int) -> Channels:
        """The same along another dimension."""
        return Channels(dim, self.parts, self.block)

    def spoken(self, silent: bool) -> Channels:
        """The same, with ``silent`` for all parts."""
        return Channels(self.dim, tuple(Part(part.stream, silent) for part in self.parts), self.block)

    def is_like(self, other: Channels) -> bool:
        """Whether both list as many channels in the same order of parts."""
        sizes, others = ([part.stream.channels for part in side.parts] for side in (self, other))
        return self.block == other.block and sizes == others


@dataclass(frozen=True)
class Unlisted:
    """A tensor none of whose dimensions lists the channels of a stream; ``what`` it is, in words."""

    what: str


Label = Channels | Unlisted


def can_carry(module: nn.Module) -> bool:
    """Whether a module has a place for a channel group."""
    return not vars(module).keys().isdisjoint(ROLES)


@dataclass
class Streams:
    """What a trace found, by module.

    Attributes:
        names: of the model's modules.
        made: the stream that a layer's output channels are.
        read, carried: labels of what layers read, and of what neurons, batch norms and selections work on, one for
            each call.
        called: modules that were run.
        touched: parameters that code outside of their layers used, by name, and where.
        mixed: operations that rearranged channels, as a reshape does where the input has another size than it expects.
        unknown: modules and functions that no rule covers, and what is to be said of them.
    """

    names: dict[nn.Module, str]
    made: dict[nn.Module, Stream] = field(default_factory=dict)
    read: dict[nn.Module, list[Label]] = field(default_factory=dict)
    carried: dict[nn.Module, list[Label]] = field(default_factory=dict)
    called: set[nn.Module] = field(default_factory=set)
    touched: dict[str, str] = field(default_factory=dict)
    mixed: set[str] = field(default_factory=set)
    unknown: dict[str, str] = field(default_factory=dict)

    def outputs(self, module: nn.Module) -> Channels:
        """The channels that a layer makes, as the rows of its weight list them."""
        return Channels(0, (Part(self.made[module], False),))

    def all(self) -> list[Stream]:
        """Every stream once, in the order in which they were made."""
        labels = [label for calls in (*self.read.values(), *self.carried.values()) for label in calls]
        parts = [part.stream for label in labels if isinstance(label, Channels) for part in label.parts]
        return list(dict.fromkeys(stream.root for stream in (*self.made.values(), *parts)))

    @staticmethod
    def block(labels: Iterable[Label], reason: str) -> None:
        """Say why what these labels list cannot be pruned."""
        for label in labels:
            for part in label.parts if isinstance(label, Channels) else ():
                part.stream.root.reasons[reason] = None

    def tie(self, labels: list[Label], reason: str) -> bool:
        """Unite what several labels list, channel by channel; where they can't be, forbid to prune any, and say why."""
        listed = [label for label in labels if isinstance(label, Channels)]
        if len(listed) < len(labels) or not all(label.is_like(listed[0]) for label in listed):
            self.block(listed, reason)
            return False
        for label in listed[1:]:
            for part, other in zip(listed[0].parts, label.parts, strict=True):
                part.stream.unite(other.stream)
        return True

    def settle(self) -> None:
        """Tie what layers that are called, or parameters that are used, several times hold together, and forbid to
        prune what nothing could silence or would miss. Call it when the trace is done.
        """
        for calls, verb in (self.read, "reads"), (self.carried, "works on"):
            for module, labels in calls.items():
                other = next((label.what for label in labels if isinstance(label, Unlisted)), "other channels")
                self.tie(labels, f"{self.names[module]} {verb} it and, in another call, {other}")
        self._settle_parameters()
        for module, name in self.names.items():
            if can_carry(module) and module not in self.called:
                self.unknown[name] = "it is not called in the pass that was traced"
        neurons = {module for module in self.carried if hasattr(module, "activity")}
        heard = self._roots(label for module in neurons for label in self.carried[module])
        read = self._roots(label for labels in self.read.values() for label in labels)
        for stream in self.all():
            if not stream.reasons and stream not in heard:
                stream.reasons["no neuron works on it, so that its activity is unknown"] = None
            if not stream.reasons and stream not in read:
                stream.reasons["nothing reads it"] = None

    def _settle_parameters(self) -> None:
        owners: dict[nn.Parameter, list[tuple[str, nn.Module]]] = {}
        for module, place in self.names.items():
            for name, p in module.named_parameters(recurse=False):
                owners.setdefault(p, []).append((f"{place}.{name}".lstrip("."), module))
            if computed := computed_parameters(module):
                self.block(self._sides(module), f"the parameters of {place} are not its own ({computed})")
        for p, places in owners.items():
            (first, layer), *others = places
            for name, where in self.touched.items():
                if any(name == known for known, _ in places):
                    self.block(self._sides(layer), f"{where} uses {name}")
            for name, other in others:
                ours, theirs = (self._sides(m, p.dim() > 1) for m in (layer, other))
                reason = f"{first} is also {name}"
                if len(ours) != len(theirs):
                    self.block((*ours, *theirs), f"{reason}, in a layer of another kind or one that is not called")
                    continue
                for pair in zip(ours, theirs, strict=True):
                    self.tie(list(pair), f"{reason}, whose channels are others")

    def _sides(self, module: nn.Module, columns: bool = True) -> list[Label]:
        """Which channels a module's parameters list, in the order of dimensions: those that it makes or works on, and,
        with ``columns``, those that it reads (which a depthwise convolution makes, too).
        """
        made = [self.outputs(module)] if module in self.made else []
        made += self.carried.get(module, [])[:1]
        read = self.read.get(module, [])[:1] if columns or not made else []
        return read + made if weight_dims(module)[0] else made + read

    @staticmethod
    def _roots(labels: Iterable[Label]) -> set[Stream]:
        return {part.stream.root for label in labels if isinstance(label, Channels) for part in label.parts}
