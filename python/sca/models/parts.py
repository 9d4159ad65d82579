"""What the families share: checks of the arguments that all of them take, and their layers by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from sca_kernels import checks
from sca_kernels import nn as snn

from ..registry import nearest

__all__ = [
    "INITS",
    "NEURONS",
    "HiddenBlock",
    "Layers",
    "by_frames",
    "check_neuron",
    "check_positive",
    "initialise",
    "sides_of",
]

# Channels of a layer, at most: a convolution 3x3 between two such has 150 GB of weights.
_WIDEST = 2**16

# name -> the neuron fused with a batch norm, and alone
NEURONS = {
    "if": (snn.BatchNormIF, snn.IF),
    "lif": (snn.BatchNormLIF, snn.LIF),
    "plif": (snn.BatchNormPLIF, snn.PLIF),
}
# Those of the neurons' arguments that are about the batch norm.
_NORM_ARGUMENTS = ("eps", "momentum", "affine", "track_running_stats", "process_group")

_LARGEST = 1e30  # and float32 ends at 3e38
# What batch norms take unseen: name, what is expected, whether a value is that.
_NORM_VALUES: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("eps", "a number > 0", lambda value: type(value) in (int, float) and value > 0),
    ("momentum", "a number in [0, 1] or none", lambda v: v is None or (type(v) in (int, float) and 0 <= v <= 1)),
    ("affine", "true or false", lambda value: isinstance(value, bool)),
    ("track_running_stats", "true or false", lambda value: isinstance(value, bool)),
    ("stateful", "false, since batches have nothing to do with each other", lambda value: value is False),
)


class Layers:
    """Makes the channel groups of one network, and layers that carry them.

    Args:
        neuron: ``if``, ``lif`` or ``plif``.
        width: factor on all hidden widths.
        widths: number of channels of the groups named here.
        neuron_arguments: of the neurons and of the batch norms in front of them.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, neuron: str, width: float, widths: dict[str, int] | None, neuron_arguments: dict[str, Any]
    ) -> None:
        checks.one_of("neuron", neuron, NEURONS)
        if checks.number("width", width) <= 0:
            raise ValueError(f"width: expected a factor > 0, got {width}")
        self._fused, self._plain = NEURONS[neuron]
        self._arguments = neuron_arguments
        accepted = _arguments(self._fused)
        for name in neuron_arguments:
            if name not in accepted:
                raise ValueError(
                    f"{name}: neither an argument of this network nor of its neuron {neuron!r}, which takes "
                    f"{', '.join(accepted)}{nearest(name, accepted)}"
                )
        self._width = width
        self._widths = dict(
            checks.instance("widths", {} if widths is None else widths, dict, "a dict of numbers of channels")
        )
        for channels in self._widths.values():
            checks.integer("widths", channels, 1, _WIDEST)

    def scaled(self, channels: int) -> int:
        """A hidden width of the original, times the factor."""
        scaled = max(1, round(channels * self._width))
        if scaled > _WIDEST:
            raise ValueError(f"width: expected at most {_WIDEST} channels in a layer, got {scaled:g}")
        return scaled

    def group(self, name: str, channels: int, prunable: bool = True) -> snn.ChannelGroup:
        """A group of so many channels, or of those that ``widths`` says."""
        return snn.ChannelGroup(self._widths.pop(name, channels), name=name, prunable=prunable)

    def check_widths(self, model: str) -> None:
        """Call it when all groups are made.

        Raises:
            ValueError: ``widths`` names a group that does not exist.
        """
        if self._widths:
            raise ValueError(f"widths: {model} has no group named {', '.join(self._widths)}")

    def conv(
        self,
        source: snn.ChannelGroup | int,
        sink: snn.ChannelGroup | int,
        kernel_size: int,
        stride: int = 1,
        spike_input: bool = True,
    ) -> snn.ChannelConv2d:
        """A convolution without bias, padded by half its kernel; an int is a number of channels that have no group."""
        (inputs, in_group), (outputs, out_group) = (
            (side.num_channels, side) if isinstance(side, snn.ChannelGroup) else (side, None) for side in (source, sink)
        )
        return snn.ChannelConv2d(
            inputs,
            outputs,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            bias=False,
            in_group=in_group,
            out_group=out_group,
            spike_input=spike_input,
        )

    def norm_neuron(self, group: snn.ChannelGroup) -> nn.Module:
        """Batch norm and neuron in one."""
        return self._fused(group.num_channels, group=group, **self._arguments)

    def norm(self, group: snn.ChannelGroup) -> nn.Module:
        """The batch norm alone."""
        own = {name: value for name, value in self._arguments.items() if name in _NORM_ARGUMENTS}
        return snn.ChannelBatchNorm2d(group.num_channels, group=group, **own)

    def neuron(self, group: snn.ChannelGroup) -> nn.Module:
        """The neuron alone."""
        own = {name: value for name, value in self._arguments.items() if name not in _NORM_ARGUMENTS}
        if own.pop("per_channel", False):
            own["channels"] = group.num_channels
        return self._plain(group=group, **own)


def by_frames(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer that reads frames [M, C, H, W], as torch's own convolutions do, on a sequence [T, N, C, H, W]."""
    return layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class HiddenBlock(nn.Module):
    """Fully-connected layer, batch norm + neuron."""

    def __init__(self, linear: snn.ChannelLinear, neuron: nn.Module) -> None:
        super().__init__()
        self.linear, self.neuron = linear, neuron

    def forward(self, x: Tensor) -> Tensor:
        """``[T, N, features]`` -> spikes ``[T, N, features']``."""
        return self.neuron(self.linear(x))


def _arguments(module: type[nn.Module]) -> list[str]:
    """What users may give a batch-norm neuron, from its constructor and those of its bases."""
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    names = {
        parameter.name
        for base in module.__mro__
        if base.__module__.startswith("sca_kernels") and "__init__" in vars(base)
        for parameter in inspect.signature(base.__init__).parameters.values()
        if parameter.kind in kinds
    }
    return sorted(names - {"self", "num_features", "group"})


def check_neuron(neuron: str, arguments: dict[str, Any]) -> None:
    """Refuse what the neurons of a network, and the batch norms in front of them, would refuse.

    Args:
        neuron, arguments: see :class:`Layers`.

    Raises:
        ValueError: an argument is unknown, of another type or out of range; the message names it.
    """
    if "process_group" in arguments:
        raise ValueError("process_group: expected nothing in a configuration, the processes of a run set it")
    for name, value in arguments.items():
        if not isinstance(value, str | int | float | NoneType):
            raise ValueError(f"{name}: expected a number, a name, true, false or none, got {value!r}")
        if isinstance(value, int | float) and not abs(value) <= _LARGEST:
            raise ValueError(f"{name}: expected a number of at most {_LARGEST:g}, got {value!r}")
    for name, expected, ok in _NORM_VALUES:
        if name in arguments and not ok(arguments[name]):
            raise ValueError(f"{name}: expected {expected}, got {arguments[name]!r}")
    layers = Layers(neuron, 1.0, None, arguments)
    group = snn.ChannelGroup(1)
    try:
        # what is told when they are made, and what only when they run
        for module in layers.norm_neuron(group), layers.norm(group), layers.neuron(group):
            module(torch.tensor([0.0, 1.0]).reshape(1, 2, 1, 1, 1))
    except ValueError:
        raise
    except Exception as error:  # whatever a strange value brings about
        named = str(error).partition(":")[0] in arguments
        raise ValueError(f"{'' if named else 'neuron_arguments: '}{error}") from error


def check_positive(**sizes: int) -> dict[str, int]:
    """The arguments as plain ints; a TypeError or ValueError names the first that is no int of at least 1."""
    return {argument: checks.integer(argument, value) for argument, value in sizes.items()}


def sides_of(image_size: int | Sequence[int]) -> list[int]:
    """Height and width in pixels."""
    return list(checks.pair("image_size", image_size, 1))


def initialise(model: nn.Module) -> None:
    """He initialisation of convolutions and linear layers (ICCV 2015), and the layout that convolutions like best."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    model.to(memory_format=torch.channels_last)


def he(model: nn.Module) -> None:
    """Normal weights of variance 2 / fan-in (He et al., ICCV 2015), as :func:`initialise` draws them."""


@torch.no_grad()
def dirac(model: nn.Module) -> None:
    """Convolutions pass their input on: filter i is the identity of channel i, those beyond the inputs stay as they are
    ("identity initialization" of Jordan, arXiv 2404.00498)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight[: module.weight.shape[1]])


#: name -> function of a network that :func:`initialise` has initialised
INITS: dict[str, Callable[[nn.Module], None]] = {"he": he, "dirac": dirac}
