"""What each operation does with channels: the rules by which a trace follows them.

A rule takes a :class:`Call` and returns the label of its result. What it can't follow it forbids to prune, with the
reason. Channels come from layers alone; no rule takes a size for a channel count, so that the time axis, or any other,
is never read as channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .groups import channel_dim, is_depthwise
from .streams import Channels, Label, Part, Stream, Streams, Unlisted

__all__ = ["Call", "Operand", "follow"]


class Operand(Protocol):
    """A tensor on its way through the network."""

    value: Tensor
    label: Label


@dataclass(frozen=True)
class Call:
    """One operation of a traced network.

    Attributes:
        name: of the function or method without underscores around it, or of the class that defines a module's forward.
        what: the same for messages, with the place.
        module: the module; None for a function.
        operands: the tensors among its arguments.
        args, kwargs: its arguments, operands among them.
        result: what it returned.
        rerun: runs it again, on other tensors in place of the operands.
        writes: whether it writes to a part of a tensor, or into one that is no operand.
        streams: what the trace has found so far.
    """

    name: str
    what: str
    module: nn.Module | None
    operands: tuple[Operand, ...]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any
    rerun: Callable[[list[Tensor]], Any]
    writes: bool
    streams: Streams

    def listed(self) -> list[Channels]:
        """Labels of the operands that list channels."""
        return [x.label for x in self.operands if isinstance(x.label, Channels)]

    def is_unary(self) -> bool:
        """Whether there is no second tensor, unless as a model of type and device."""
        others = (*self.args, *self.kwargs.values())
        constants = any(isinstance(x, Tensor) and not any(x is operand for operand in self.operands) for x in others)
        return self.name in ("to", "type_as") or (len(self.operands) == 1 and not constants)

    def argument(self, position: int, *names: str, default: Any = None) -> Any:
        """An argument by position or by one of its names."""
        if position < len(self.args):
            return self.args[position]
        return next((self.kwargs[name] for name in names if name in self.kwargs), default)


Rule = Callable[[Call], Label]


def follow(call: Call) -> Label:
    """The label of a call's result (of all tensors in it)."""
    listed = call.listed()
    rule = _writes if call.writes else _RULES.get(call.name, _unknown)
    if not listed and rule not in _LAYERS and rule is not _unknown:
        return call.operands[0].label
    return rule(call)


def _writes(call: Call) -> Label:
    """What writes to a part of a tensor, or into one that nothing follows."""
    advice = "it writes into another tensor; join tensors by torch.stack or torch.cat instead"
    call.streams.block(call.listed(), f"{call.what} reads it: {advice}")
    return Unlisted(f"what {call.what} wrote to")


def _unknown(call: Call) -> Label:
    """What no rule covers."""
    advice = _INSTEAD.get(call.name, "tracing doesn't know what that does with channels")
    call.streams.block(call.listed(), f"{call.what} reads it: {advice}")
    trained = call.module is not None and next(call.module.parameters(), None) is not None
    if call.name in _INSTEAD or trained:
        call.streams.unknown[call.what] = advice
    return Unlisted(f"the output of {call.what}")


def _keeps_zero(call: Call) -> Label:
    """Value by value; zero stays zero."""
    return call.operands[0].label if call.is_unary() else _unknown(call)


def _moves_zero(call: Call) -> Label:
    """Value by value, but not zero to zero: a silent channel isn't silent any more."""
    return call.operands[0].label.spoken(False) if call.is_unary() else _unknown(call)


def _over_space(call: Call) -> Label:
    """Works on the last dimensions alone: as many as its name says, or the sizes of a border; else on all behind the
    first two."""
    x, label = call.operands[0], call.operands[0].label
    y = call.result[0] if isinstance(call.result, tuple) else call.result
    space = next((n for n in (1, 2, 3) if f"{n}d" in call.name), y.dim() - 2)
    pads, value = call.name == "pad" or call.name in _PADS.split(), None
    if pads:
        border = call.argument(1, "pad") if call.module is None else call.module.padding
        value = call.argument(3, "value") if call.module is None else getattr(call.module, "value", None)
        space = len(border) // 2
    same = y.dim() == x.value.dim() and y.shape[: label.dim + 1] == x.value.shape[: label.dim + 1]
    if not same or label.dim >= y.dim() - space or (y.dim() > 2 + space and not pads):
        call.streams.block([label], f"{call.what} works across its channels: without one of them it would mix others")
        return Unlisted(f"the output of {call.what}")
    return label if value in (None, 0) else label.spoken(False)


def _rearranges(call: Call) -> Label:
    """Moves, repeats, selects or averages values: where the channels are afterwards is seen by doing it to their
    numbers.
    """
    listed = call.listed()
    how = f"{call.what} takes it together with {{other}}"
    if len(listed) < len(call.operands):
        other = next(x.label.what for x in call.operands if isinstance(x.label, Unlisted))
        call.streams.block(listed, how.format(other=other))
        return Unlisted(f"the output of {call.what}")
    if not call.streams.tie(listed, how.format(other="channels of another number or order")):
        return Unlisted(f"the output of {call.what}")
    label = listed[0]
    if all(other.dim == label.dim for other in listed):
        try:
            results = call.rerun([_numbered(x) for x in call.operands])
        except (IndexError, RuntimeError, TypeError):  # a mask or an index among them
            results = ()
        results = results if isinstance(results, tuple | list) else (results,)
        found = [_found(y, label) for y in results if isinstance(y, Tensor) and y.is_floating_point()]
        if found and found[0] is not None and all(other == found[0] for other in found):
            dim, block = found[0]
            silent = tuple(all(other.parts[i].silent for other in listed) for i in range(len(label.parts)))
            parts = tuple(Part(part.stream, s) for part, s in zip(label.parts, silent, strict=True))
            return Channels(dim, parts, block)
    call.streams.mixed.add(call.what)
    call.streams.block(listed, f"{call.what} mixes its channels with each other, leaves some out or reorders them")
    return Unlisted(f"the output of {call.what}")


def _numbered(x: Operand) -> Tensor:
    """A tensor laid out like the operand that holds, everywhere, the number of the channel."""
    label = x.label
    shape = [1] * x.value.dim()
    shape[label.dim] = -1
    numbers = torch.arange(label.size, dtype=torch.float64, device=x.value.device).repeat_interleave(label.block)
    return torch.empty_like(x.value, dtype=torch.float64).copy_(numbers.view(shape))


def _found(y: Tensor, label: Channels) -> tuple[int, int] | None:
    """Dimension and block at which y holds the channels' numbers, up to a factor (as a sum over time has)."""
    if not y.numel() or y.max() <= 0:
        return None
    numbers = y.double() * ((label.size - 1) / y.max().double())
    for dim, size in enumerate(y.shape):
        if size % label.size == 0:
            block = size // label.size
            shape = [1] * y.dim()
            shape[dim] = -1
            expected = torch.arange(label.size, device=y.device).repeat_interleave(block).view(shape)
            if (numbers - expected).abs().max() < 1e-6:
                return dim, block
    return None


def _concatenates(call: Call) -> Label:
    tensors = call.argument(0, "tensors")
    dim = call.argument(1, "dim", "axis", default=0) % call.result.dim()
    listed = call.listed()
    if any(label.dim != dim for label in listed):
        return _rearranges(call)
    block = listed[0].block
    parts: list[Part] = []
    for x in tensors:
        label = x.label if hasattr(x, "label") else Unlisted("a tensor of fixed size")
        size = (x.value if hasattr(x, "value") else x).shape[dim]
        if isinstance(label, Channels) and label.block == block:
            parts += label.parts
        elif isinstance(label, Unlisted) and size % block == 0:
            fixed = Stream(size // block, label.what)
            fixed.reasons[f"it is {label.what}"] = None
            parts.append(Part(fixed, False))
        else:
            call.streams.block(listed, f"{call.what} joins channels of different numbers of features")
            return Unlisted(f"the output of {call.what}")
    return Channels(dim, tuple(parts), block)


def _combines(call: Call) -> Label:
    """Value by value, of two tensors: channel i of the one with channel i of the other."""
    verb = _VERBS[call.name]
    sides = [call.argument(0, "input"), call.argument(1, "other")]
    labels = [getattr(side, "label", Unlisted("a tensor of fixed size")) for side in sides]
    values = [getattr(side, "value", side) for side in sides]
    listed = [label for label in labels if isinstance(label, Channels)]
    rank = call.result.dim()
    # dimensions of the result; the operands are aligned at the end
    dims = [rank - v.dim() + label.dim for v, label in zip(values, labels, strict=True) if isinstance(label, Channels)]
    others = [
        label.what
        for value, label in zip(values, labels, strict=True)
        if isinstance(label, Unlisted) and isinstance(value, Tensor) and _spans(value, dims[0] - rank)
    ]
    reason = f"{verb} ({call.what}) ties it to {' and '.join(others) or 'channels of another number or order'}"
    before = len({part.stream.root for label in listed for part in label.parts})
    if others or len(set(dims)) > 1:
        call.streams.block(listed, reason)
        return Unlisted(f"the output of {call.what}")
    if not call.streams.tie(listed, reason):
        return Unlisted(f"the output of {call.what}")
    parts = listed[0].parts
    if verb == "an addition" and before > len({part.stream.root for part in parts}):
        for part in parts:
            part.stream.root.additions[call.what] = None
    silent = zip(*([part.silent for part in label.parts] for label in listed), strict=True)
    both = len(listed) == 2
    if verb == "a multiplication":
        silent = [any(of) for of in silent]
    elif verb == "a division":
        silent = [of[0] and not both and isinstance(labels[0], Channels) for of in silent]
    else:
        silent = [all(of) and both for of in silent]
    return Channels(dims[0], tuple(Part(p.stream, s) for p, s in zip(parts, silent, strict=True)), listed[0].block)


def _spans(value: Tensor, dim: int) -> bool:
    """Whether a tensor has more than one entry along a dimension counted from the end."""
    return value.dim() >= -dim and value.shape[dim] > 1


def _reads(call: Call, dim: int, whole: bool) -> Label:
    """What a layer reads along ``dim``; ``whole``: one entry for each channel."""
    label = call.operands[0].label
    if isinstance(label, Channels) and (label.dim != dim or (whole and label.block > 1)):
        reason = f"{call.what} reads dimension {dim}, but its channels are in dimension {label.dim}"
        if label.dim == dim:
            reason = f"{call.what} reads {label.block} entries for each of its channels"
        call.streams.block([label], reason)
        label = Unlisted("channels in another dimension")
    call.streams.read.setdefault(call.module, []).append(label)
    return label


def _needs_silence(call: Call, label: Label) -> None:
    for part in label.parts if isinstance(label, Channels) else ():
        if not part.silent and not part.stream.root.reasons:
            reason = f"{call.what} reads it, with no neuron before to silence a dormant channel"
            part.stream.root.reasons[reason] = None


def _makes(call: Call, channels: int, dim: int) -> Label:
    """New channels; the same ones at every call."""
    stream = call.streams.made.setdefault(call.module, Stream(channels))
    if channels == 1:
        stream.root.reasons["it is a single channel"] = None
        return Unlisted(f"the single channel of {call.what}")
    return Channels(dim, (Part(stream, False),))


def _convolution(call: Call) -> Label:
    conv = call.module
    behind = channel_dim(conv)
    label = _reads(call, call.operands[0].value.dim() + behind, whole=True)
    dim = call.result.dim() + behind
    if is_depthwise(conv):
        if isinstance(label, Unlisted):
            call.streams.unknown[call.what] = f"it is depthwise, and reads {label.what}"
            return label
        return label.at(dim).spoken(False)
    _needs_silence(call, label)
    made = _makes(call, conv.out_channels, dim)
    if conv.groups > 1:
        reason = f"{call.what} is a grouped convolution (groups={conv.groups}) that is not depthwise"
        call.streams.block([label, made], reason)
    return made


def _linear(call: Call) -> Label:
    label = _reads(call, call.operands[0].value.dim() - 1, whole=False)
    _needs_silence(call, label)
    return _makes(call, call.module.out_features, call.result.dim() - 1)


def _carries(call: Call) -> Label:
    """Batch norms and neurons, which work on dimension 2 of [T, N, C, *S], but for those that say on which."""
    label, x = call.operands[0].label, call.operands[0].value
    dim = call.module.channel_dim(x) if hasattr(call.module, "channel_dim") else 2
    if isinstance(label, Channels) and label.dim != dim:
        if dim != 2 or hasattr(call.module, "channel_dim"):  # not for its user to mend
            call.streams.block([label], f"{call.what} works on dimension {dim}, its channels are in {label.dim}")
            call.streams.carried.setdefault(call.module, []).append(Unlisted("channels in another dimension"))
            return Unlisted(f"the output of {call.what}")
        raise ValueError(
            f"{call.what}: expected its channels in dimension 2 (time-major [T, N, C, *S]), got them in dimension "
            f"{label.dim} of {list(x.shape)}"
        )
    if isinstance(label, Channels) and label.block > 1:
        call.streams.block([label], f"{call.what} works on {label.block} features for each of its channels")
        label = Unlisted("flattened channels")
    call.streams.carried.setdefault(call.module, []).append(label)
    if isinstance(label, Unlisted):
        call.streams.unknown[call.what] = f"it works on {label.what}"
        return label
    return label.spoken(hasattr(call.module, "activity"))


def _selects(call: Call) -> Label:
    """A selection has a group of its own, and needs all channels of what it selects from."""
    call.streams.block(call.listed(), f"{call.what} selects from all of its channels")
    calls = call.streams.carried.setdefault(call.module, [])
    if not calls:
        calls.append(Channels(2, (Part(Stream(call.module.index.numel()), False),)))
    return calls[0]


_LAYERS: set[Rule] = {_convolution, _linear, _carries, _selects}

# Names of functions, methods and modules.
_KEEP_ZERO = """
abs absolute atan bfloat16 clone contiguous cpu cuda detach double dropout dropout1d dropout2d dropout3d elu erf expm1
float floor gelu half hardswish leaky_relu log1p neg negative pos positive relu relu6 requires_grad round selu sign silu
sin sinh sqrt square tan tanh to trunc type type_as zeros_like Dropout Dropout1d Dropout2d Dropout3d ELU GELU Hardswish
Identity LeakyReLU ReLU ReLU6 SELU SiLU Tanh
"""
_MOVE_ZERO = """
acos clamp clip cos empty_like eq exp full_like ge gt hardsigmoid hardtanh le logical_not logsigmoid lt ne ones_like pow
rand_like randn_like reciprocal rsqrt sigmoid softplus Hardsigmoid Hardtanh LogSigmoid Sigmoid Softplus
"""
_OVER_SPACE = """
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
avg_pool1d avg_pool2d avg_pool3d interpolate lp_pool1d lp_pool2d lp_pool3d max_pool1d max_pool2d max_pool2d_with_indices
max_pool3d pad upsample AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d
AdaptiveMaxPool3d AvgPool1d AvgPool2d AvgPool3d LPPool1d LPPool2d LPPool3d MaxPool1d MaxPool2d MaxPool3d Upsample
"""
_PADS = "_CircularPadNd _ConstantPadNd _ReflectionPadNd _ReplicationPadNd"
_REARRANGE = """
amax amin chunk expand flatten flip getattr getitem max mean median min moveaxis movedim narrow permute repeat
repeat_interleave reshape roll select split squeeze stack sum swapaxes swapdims t tensor_split tile transpose unbind
unflatten unsqueeze view Flatten Unflatten
"""
_VERBS = {
    "add": "an addition",
    "iadd": "an addition",
    "sub": "an addition",
    "isub": "an addition",
    "subtract": "an addition",
    "maximum": "a maximum",
    "minimum": "a minimum",
    "mul": "a multiplication",
    "imul": "a multiplication",
    "multiply": "a multiplication",
    "div": "a division",
    "divide": "a division",
    "truediv": "a division",
    "itruediv": "a division",
    "true_divide": "a division",
}

_RULES: dict[str, Rule] = {
    "ChannelConv": _convolution,
    "ChannelConvTranspose": _convolution,
    "ChannelLinear": _linear,
    "ChannelSelect": _selects,
    "ChannelBatchNorm": _carries,
    "NeuronModule": _carries,
    "Synapse": _carries,
    "ConvertedNeuron": _carries,
    "SnnTorchNeuron": _carries,
    "NorseCell": _carries,
    "NorseSequence": _carries,
    "FrameBatchNorm": _carries,
    "FrameBatchNorm1d": _carries,
    "_Held": _carries,
    "BatchNormNeuron": _carries,
    "cat": _concatenates,
    "concat": _concatenates,
    "concatenate": _concatenates,
    **dict.fromkeys(_KEEP_ZERO.split(), _keeps_zero),
    **dict.fromkeys(_MOVE_ZERO.split(), _moves_zero),
    **dict.fromkeys((*_OVER_SPACE.split(), *_PADS.split()), _over_space),
    **dict.fromkeys(_REARRANGE.split(), _rearranges),
    **dict.fromkeys(_VERBS, _combines),
}

# What to write in place of layers and functions that can't carry a group.
_INSTEAD = {
    "channel_conv2d": "a function can't carry a group; use the module sca_kernels.nn.ChannelConv2d, or ChannelConv1d",
    **{
        name: f"replace it by the module sca_kernels.nn.Channel{names[0]}"
        for names in (
            ("Conv1d", "conv1d"),
            ("Conv2d", "conv2d"),
            ("ConvTranspose1d", "conv_transpose1d"),
            ("ConvTranspose2d", "conv_transpose2d"),
        )
        for name in names
    },
    **dict.fromkeys(("Linear", "linear"), "replace it by the module sca_kernels.nn.ChannelLinear"),
    **dict.fromkeys(
        ("_BatchNorm", "SyncBatchNorm", "batch_norm"),
        "replace it by the module sca_kernels.nn.ChannelBatchNorm2d (ChannelBatchNorm1d, where it was a BatchNorm1d), "
        "or, with the neuron behind it, by one such as BatchNormLIF",
    ),
    **dict.fromkeys(
        ("neuron", "if_neuron", "lif", "plif"),
        "a function can't carry a group; use a module such as sca_kernels.nn.LIF",
    ),
    **dict.fromkeys(
        ("batch_norm_neuron", "batch_norm_if", "batch_norm_lif", "batch_norm_plif"),
        "a function can't carry a group; use a module such as sca_kernels.nn.BatchNormLIF",
    ),
}
