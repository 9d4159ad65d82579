"""Channel groups for a network that carries none: traced, attached, and tried out."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sca_kernels import checks
from sca_kernels import nn as snn
from sca_kernels.nn.group import ROLES

from .groups import CONVOLUTIONS, Members, carried
from .snapshot import Snapshot
from .streams import Channels, Label, Stream, Streams
from .tracing import OUTPUT, leaves, require_none_left, trace, user_line
from .untouched import untouched

__all__ = ["AttachReport", "GroupRow", "attach_groups", "example_inputs", "has_groups"]

logger = logging.getLogger(__name__)

#: sides of the images and lengths of the sequences that are tried where no example is given
_SIZES = (32, 28, 34, 16, 8, 48, 64, 96, 128, 224)


@dataclass(frozen=True)
class GroupRow:
    """One set of channels that live and die together: the names of the layers that make it, of those that read it, and
    of the neurons, batch norms and selections that work on it channel by channel.
    """

    name: str
    channels: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    carriers: tuple[str, ...]
    prunable: bool


@dataclass(frozen=True)
class AttachReport:
    """What :func:`attach_groups` found; as a string, a table and a list.

    Attributes:
        groups: all sets of channels, in the order of the pass.
        unprunable: what cannot be pruned, or is not, by name, and why.
    """

    groups: tuple[GroupRow, ...]
    unprunable: dict[str, str]

    def __str__(self) -> str:
        head = ("group", "channels", "made by", "carried by", "read by", "prunable")
        lines = [head]
        for row in self.groups:
            modules = (_listed(names) for names in (row.producers, row.carriers, row.consumers))
            lines.append((row.name, str(row.channels), *modules, "yes" if row.prunable else "no"))
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        table = [
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        return "\n".join([*table, *self.reasons()])

    def reasons(self) -> list[str]:
        """One line for each thing that cannot be pruned."""
        return [f"not pruned: {name}: {reason}" for name, reason in self.unprunable.items()]


def _listed(names: Sequence[str]) -> str:
    more = f" + {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0]}{more}" if names else "-"


def has_groups(model: nn.Module) -> bool:
    """Whether any module carries a channel group."""
    return any(carried(module, attribute) for module in model.modules() for attribute in ROLES)


def attach_groups(model: nn.Module, example_input: Any = None, *, prune_stream: bool = False) -> AttachReport:
    """Find the channels that live and die together in a network of ``sca_kernels.nn`` layers, and have them share
    :class:`sca_kernels.nn.ChannelGroup` objects, so that :class:`sca.SCAScheduler` and :func:`sca.compact` can work.

    The network runs once under a torch.fx tracer, which follows the channels from layer to layer: through neurons,
    batch norms, pools, reshapes, means over time or space, additions (which tie channels), concatenations
    (:meth:`sca_kernels.nn.ChannelGroup.concat`), layers that are called and weights that are used several times. What
    can't be followed is not pruned, and the report says why. Then it runs with half of all channels dormant: a group
    with which that fails, as behind a reshape to a literal size, is not pruned either. Parameters, buffers, activity,
    neuron states and torch's random state stay as they were.

    Args:
        model: carries no group; unwrapped (no DistributedDataParallel), traced in the mode it is in. Its neurons read
            [T, N, C, *S].
        example_input: what its forward takes, on its device: a tensor, or a tuple of arguments. Two samples are best,
            for a dimension of size 1 hides what a reshape does with it. None: images [N, C, S, S] or sequences
            [T, N, C, S, S] (vectors, where the first layer is linear; [N, C, S] and [T, N, C, S], where it is a
            convolution over one dimension) of usual sizes, up to 224, are tried.
        prune_stream: whether channels that an addition ties, as those of a residual stream, are prunable, too.

    Returns:
        The groups, and what cannot be pruned. ``in_group``, ``out_group`` and ``group`` of the modules, and
        ``features_per_channel`` of linear layers, are set.

    Raises:
        ValueError: the model carries groups already; the trace stopped (with the line of the model's code); no example
            is given and none that was tried fits; or nothing is prunable (with all reasons). The model is then as it
            was.
    """
    checks.instance("model", model, nn.Module, "a torch.nn.Module")
    checks.boolean("prune_stream", prune_stream)
    if has_groups(model):
        raise ValueError("model: expected no channel groups, but its modules carry some already")
    inputs, streams = _traced(model, example_input)
    streams.settle()
    wiring = _Wiring(streams, prune_stream, getattr(model, "group_names", {}))
    try:
        if wiring.prunable():
            wiring.attach()
            wiring.try_out(model, inputs)
        report = wiring.report()
        if not wiring.prunable():
            raise ValueError("\n".join(["model: found no channels that can be pruned", *report.reasons()]))
    except BaseException:
        wiring.detach()
        raise
    for name, reason in report.unprunable.items():
        level = logging.INFO if reason == OUTPUT else logging.WARNING
        logger.log(level, "not pruned: %s: %s", name, reason)
    return report


def require_prunable(model: nn.Module, example_input: Any, groups: Mapping[str, Members]) -> None:
    """See to it that a network which carries groups runs without half of their channels: that every layer which reads
    them carries them, too. A head that was replaced, or a path that was added beside a layer, does not.

    Args:
        model: unwrapped; runs in the mode it is in, and is left as it was.
        example_input: as in :func:`attach_groups`; None: the usual sizes, and where none fits, nothing is tried.
        groups: the prunable ones.

    Raises:
        ValueError: it fails; with the name of a group.
    """
    advice = (
        "every layer that reads these channels must carry their group, those that replaced others or stand beside them "
        "included, as sca_kernels.nn.ChannelLinear(old.in_features, n, in_group=old.in_group, "
        "features_per_channel=old.features_per_channel) does"
    )
    by_group = {members.group: name for name, members in groups.items()}
    for inputs in _guesses(model) if example_input is None else (_arguments(example_input),):
        try:
            failures = _failures(model, inputs, list(by_group), same_output=False)
        except Exception as error:  # whatever the user's code raises
            if example_input is not None:
                raise ValueError(f"example_input: the model fails with it{user_line(error)}: {error}") from error
            continue
        for group, failure in failures.items():
            raise ValueError(f"model: it fails without some channels of group {by_group[group]!r}: {failure}; {advice}")
        return
    for name, members in groups.items():
        if not members.consumers:
            logger.warning(
                "nothing reads group %r: %s (no input was found to try that; see example_input)", name, advice
            )


def _traced(model: nn.Module, example_input: Any) -> tuple[tuple[Any, ...], Streams]:
    """What the network ran on, and what the trace found."""
    names = {module: name for name, module in model.named_modules()}
    if example_input is not None:
        inputs = _arguments(example_input)
        streams = Streams(names)
        with _unchanged(model):
            traced = trace(model, inputs, streams)
        require_none_left(traced)
        return inputs, streams
    furthest, reason = -1, ""
    runs: list[tuple[tuple[Any, ...], Streams]] = []
    for inputs in _guesses(model):
        streams = Streams(names)
        try:
            with _unchanged(model):
                traced = trace(model, inputs, streams)
        except ValueError as error:
            if len(streams.called) > furthest:
                furthest, reason = len(streams.called), f"{list(inputs[0].shape)}: {error}"
        else:
            require_none_left(traced)
            runs.append((inputs, streams))
            if not streams.mixed:
                break
    if runs:
        return min(runs, key=lambda run: len(run[1].mixed))
    reason = reason or "it has no convolutions or linear layers"
    raise ValueError(f"example_input: expected one batch, for none of the usual sizes fits the model; {reason}")


def example_inputs(model: nn.Module, example_input: Any) -> Iterator[tuple[Any, ...]]:
    """What a model may be tried on: the example that was given, or random batches of usual sizes."""
    if example_input is not None:
        yield _arguments(example_input)
        return
    generator = torch.Generator().manual_seed(0)
    for (x,) in _guesses(model):
        yield (torch.rand(x.shape, generator=generator, device="cpu").to(x),)


def _arguments(example_input: Any) -> tuple[Any, ...]:
    """What a model is called with, of an example that is one input or a tuple of them."""
    return example_input if isinstance(example_input, tuple) else (example_input,)


def _guesses(model: nn.Module) -> Iterator[tuple[Tensor]]:
    """Zeros, which are spikes, too; none for a model without convolutions and linear layers."""
    first = next((m for m in model.modules() if isinstance(m, (*CONVOLUTIONS, nn.Linear))), None)
    if first is None:
        return
    if isinstance(first, nn.Linear):
        ends = [(first.in_features,)]
    else:
        ends = [(first.in_channels, *[size] * len(first.kernel_size)) for size in _SIZES]
    for end, start in itertools.product(ends, ((2,), (3, 2))):
        yield (torch.zeros(*start, *end, dtype=first.weight.dtype, device=first.weight.device),)


class _Wiring:
    """Gives modules the groups that a trace found."""

    def __init__(self, streams: Streams, prune_stream: bool, known: Mapping[str, str]) -> None:
        self.streams = streams
        self.prune_stream = prune_stream
        self.rows: dict[Stream, tuple[dict[str, None], ...]] = {stream: ({}, {}, {}) for stream in streams.all()}
        roles = {module: [streams.outputs(module)] for module in streams.made}, streams.carried, streams.read
        for role, modules in enumerate(roles):
            for module, labels in modules.items():
                self._note(role, module, labels)
        for module, labels in streams.read.items():  # a depthwise convolution makes what it reads
            if isinstance(module, CONVOLUTIONS) and module not in streams.made:
                self._note(0, module, labels)
        self.names: dict[Stream, str] = {}
        for stream, roles in self.rows.items():
            made, carried_by, _ = roles
            places = [*(f"{name}.out_group" for name in made), *(f"{name}.group" for name in carried_by)]
            name = next(itertools.chain(made, carried_by), stream.origin)
            name = next((known[place] for place in places if place in known), name)
            taken = sum(known.split(" #")[0] == name for known in self.names.values())
            self.names[stream] = f"{name} #{taken + 1}" if taken else name
        self.groups: dict[Stream, snn.ChannelGroup] = {}
        self._before: list[tuple[nn.Module, str, Any]] = []

    def _note(self, role: int, module: nn.Module, labels: Sequence[Label]) -> None:
        for label in labels:
            for part in label.parts if isinstance(label, Channels) else ():
                self.rows[part.stream.root][role][self.streams.names[module]] = None

    def is_prunable(self, stream: Stream) -> bool:
        return not stream.reasons and (self.prune_stream or not stream.additions)

    def prunable(self) -> list[Stream]:
        return [stream for stream in self.rows if self.is_prunable(stream)]

    def attach(self) -> None:
        """Set the groups of all modules that work on channels which could be pruned; others stay as they are."""
        streams = self.streams
        for module in streams.made:
            self._set(module, "out_group", self._view(streams.outputs(module)))
        for module, labels in streams.read.items():
            view = self._view(labels[0])
            self._set(module, "in_group", view)
            if isinstance(module, nn.Linear) and view is not None:
                self._set(module, "features_per_channel", labels[0].block)
            elif module not in streams.made:
                self._set(module, "out_group", view)
        for module, labels in streams.carried.items():
            self._set(module, "group", self._view(labels[0]))

    def _set(self, module: nn.Module, name: str, value: Any) -> None:
        self._before.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    def detach(self) -> None:
        """Undo :meth:`attach`."""
        for module, name, value in reversed(self._before):
            setattr(module, name, value)

    def _view(self, label: Label) -> snn.ChannelGroup | None:
        """The group of what a label lists; None where none of it could be pruned."""
        roots = [part.stream.root for part in label.parts] if isinstance(label, Channels) else []
        if all(root.reasons for root in roots):
            return None
        for root in roots:
            if root not in self.groups:
                self.groups[root] = snn.ChannelGroup(root.channels, self.names[root], self.is_prunable(root))
        return snn.ChannelGroup.concat(*(self.groups[root] for root in roots))

    def try_out(self, model: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Forbid to prune the groups without half of which the network fails."""
        streams = {self.groups[stream]: stream for stream in self.groups if not stream.reasons}
        for group, failure in _failures(model, inputs, list(streams)).items():
            streams[group].reasons[f"the network fails without some of these channels: {failure}"] = None
            group.prunable = False

    def report(self) -> AttachReport:
        rows = tuple(
            GroupRow(
                self.names[stream],
                stream.channels,
                *(tuple(names) for names in (made, read, carried)),
                self.is_prunable(stream),
            )
            for stream, (made, carried, read) in self.rows.items()
        )
        unprunable = {self.names[s]: "; ".join(s.reasons) for s in self.rows if s.reasons}
        for stream in self.rows:
            if not stream.reasons and not self.is_prunable(stream):
                where = ", ".join(stream.additions)
                unprunable[self.names[stream]] = f"additions tie it ({where}); prune_stream=True prunes it"
        return AttachReport(rows, unprunable | self.streams.unknown)


@contextlib.contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """Put back, at exit, what a pass changes, whatever the model's own code keeps and wherever it does."""
    held = Snapshot(model.modules(), objects=True)
    try:
        with untouched(model):
            yield
    finally:
        held.restore()


def _failures(
    model: nn.Module, inputs: tuple[Any, ...], groups: Sequence[snn.ChannelGroup], same_output: bool = True
) -> dict[snn.ChannelGroup, str]:
    """Run the network with half of the groups' active channels dormant: those with which that fails, or changes the
    sizes of what it returns, and why.
    """
    expected = _shapes(model, inputs)
    if not same_output:
        expected = None
    before = {group: group.active for group in groups}
    found = {}
    try:
        for group in groups:
            group.set_active(before[group][: (group.num_active + 1) // 2])
        if not _failure(model, inputs, expected):
            return {}
        for group in groups:
            group.set_active(before[group])
        for group in groups:
            group.set_active(before[group][: (group.num_active + 1) // 2])
            failure = _failure(model, inputs, expected)
            if failure:
                found[group] = failure
                group.set_active(before[group])
        return found
    finally:
        for group in groups:
            group.set_active(before[group])


def _shapes(model: nn.Module, inputs: tuple[Any, ...]) -> list[torch.Size]:
    # A compiled model would be compiled for each structure that is tried. Importing the compiler takes seconds.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()
    # A state that is returned beside the result may become as narrow as what it belongs to.
    without_state = getattr(model, "without_state", lambda output: output)
    with _unchanged(model), torch.no_grad(), eager:
        return [x.shape for x in leaves(without_state(model(*inputs))) if isinstance(x, Tensor)]


def _failure(model: nn.Module, inputs: tuple[Any, ...], expected: list[torch.Size] | None) -> str:
    """Why the network doesn't run, or not to the shapes that are expected; nothing where it does."""
    try:
        shapes = _shapes(model, inputs)
    except Exception as error:  # whatever the user's code raises
        return f"{error}{user_line(error)}"
    return "" if expected in (None, shapes) else f"it returns {[list(shape) for shape in shapes]}"
