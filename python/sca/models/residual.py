"""What the residual families share: stem, stages of blocks, classifier on the mean over space.

Additions tie the channels of a residual stream: one group per stage, ``stage1``, ..., which is pruned only on demand.
The channels inside a block are free: ``stage1.block1.conv1``, ... No addition scatters: branches and stream have the
same active channels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from sca_kernels import checks
from sca_kernels import nn as snn

from .network import Network
from .parts import HiddenBlock, Layers, by_frames, check_positive, initialise, sides_of

__all__ = ["Layout", "Projection", "ResidualNetwork", "Stem", "Stream"]

#: A residual stream: its group, or its number of channels where they have none.
Stream = snn.ChannelGroup | int

# stem -> kernel and stride of its convolution, and the pool behind it
STEMS: dict[str, tuple[int, int, Callable[[], nn.Module]]] = {
    "cifar": (3, 1, nn.Identity),
    "imagenet": (7, 2, lambda: snn.MaxPool2d(3, stride=2, padding=1)),
}
# Images of at least so many pixels get the ImageNet stem, which divides their sides by 4, where none is named.
_LARGE = 96


@dataclass(frozen=True)
class Layout:
    """One family member.

    Attributes:
        stages: channels and number of blocks; each stage but the first begins by halving the map.
        hidden: neurons of the fully-connected layer in front of the classifier; 0 for none.
        stems: those that the original has.
    """

    stages: tuple[tuple[int, int], ...]
    hidden: int = 0
    stems: tuple[str, ...] = ("cifar",)


class Stem(nn.Module):
    """The first convolution, its batch norm + neuron if there is one, and the max-pool behind them if there is one."""

    def __init__(self, conv: snn.ChannelConv2d, neuron: nn.Module | None, pool: nn.Module) -> None:
        super().__init__()
        self.conv, self.neuron, self.pool = conv, neuron, pool

    def forward(self, x: Tensor, time_steps: int | None) -> Tensor:
        """``[T, N, C, H, W]`` -> ``[T, N, C', H', W']``; a neuron presents one step ``time_steps`` times."""
        z = by_frames(self.conv, x)
        if self.neuron is not None:
            z = self.neuron(z, time_steps=time_steps)
        return self.pool(z.flatten(0, 1)).unflatten(0, z.shape[:2])


class Projection(nn.Sequential):
    """A convolution on a shortcut, and what stands behind it."""

    def forward(self, x: Tensor) -> Tensor:
        """``[T, N, C, H, W]`` -> ``[T, N, C', H', W']``."""
        conv, behind = self
        return behind(by_frames(conv, x))


class ResidualNetwork(Network):
    """Residual network with a :class:`sca_kernels.nn.ChannelGroup` for each inner width: ``stage1.block1.conv1``, ...

    Args:
        name: a key of the family's ``layouts``.
        num_classes: number of labels.
        in_channels: channels of the images.
        time_steps: T, the number of steps that a still image is presented for (direct encoding).
        neuron: ``if``, ``lif`` or ``plif``.
        image_size: side in pixels, or (height, width).
        width: factor on all hidden widths.
        widths: number of channels of the groups named here, for a physically smaller network (:func:`sca.compact`).
        stem: ``cifar`` (convolution 3x3) or ``imagenet`` (convolution 7x7 with stride 2, max-pool); None: the latter
            from 96 pixels on, where the original has it.
        prune_stream: whether the channels of the residual streams are pruned as well, one group per stage.
        checkpointing: as in :class:`sca.models.vgg.VGG`; a block's input is kept as bits where it is spikes.
        neuron_arguments: passed to neurons (``tau``, ``surrogate``, ``detach_reset``, ...) and batch norms.

    Attributes:
        config: plain dict with all of the above; ``sca.models.build(**config)`` makes the same architecture.

    Raises:
        ValueError: an argument is out of range, or ``widths`` names a group that does not exist.
    """

    layouts: ClassVar[dict[str, Layout]]
    #: whether the residual stream holds spikes; else currents, or sums of spikes
    stream_is_spikes: ClassVar[bool] = False

    def __init__(
        self,
        name: str,
        num_classes: int = 10,
        in_channels: int = 3,
        time_steps: int = 4,
        neuron: str = "lif",
        image_size: int | tuple[int, int] = 32,
        width: float = 1.0,
        widths: dict[str, int] | None = None,
        stem: str | None = None,
        prune_stream: bool = False,
        checkpointing: bool = False,
        **neuron_arguments: Any,
    ) -> None:
        super().__init__()
        sides = sides_of(image_size)
        numbers = check_positive(num_classes=num_classes, in_channels=in_channels, time_steps=time_steps)
        num_classes, in_channels, time_steps = numbers.values()
        checks.boolean("prune_stream", prune_stream)
        layout = self.layouts[name]
        if stem is None:
            stem = "imagenet" if min(sides) >= _LARGE and "imagenet" in layout.stems else "cifar"
        if not isinstance(stem, str) or stem not in layout.stems:
            raise ValueError(f"stem: expected {' or '.join(layout.stems)} for {name}, got {stem!r}")
        layers = Layers(neuron, width, widths, neuron_arguments)
        self.time_steps = time_steps
        self.init_checkpointing(checkpointing, neuron_arguments)
        self.config = {
            "name": name,
            **numbers,
            "neuron": neuron,
            "image_size": sides,
            "width": width,
            "widths": widths,
            "stem": stem,
            "prune_stream": prune_stream,
            "checkpointing": checkpointing,
            **neuron_arguments,
        }

        streams = [
            self.make_stream(layers, f"stage{number}", layers.scaled(channels), prune_stream)
            for number, (channels, _) in enumerate(layout.stages, 1)
        ]
        kernel_size, stride, pool = STEMS[stem]
        conv = layers.conv(in_channels, streams[0], kernel_size, stride, spike_input=False)
        self.stem = Stem(conv, self.make_stem_neuron(layers, streams[0]), pool())
        self.blocks = nn.ModuleList()
        source = streams[0]
        for number, (stream, (channels, blocks)) in enumerate(zip(streams, layout.stages, strict=True), 1):
            for position in range(1, blocks + 1):
                place = f"stage{number}.block{position}"
                halves = number > 1 and position == 1
                self.blocks.append(self.make_block(layers, place, source, stream, layers.scaled(channels), halves))
                source = stream
        self.tail, features = self.make_tail(layers, source)
        self.hidden = nn.ModuleList()
        if layout.hidden:
            group = layers.group("fc1", layers.scaled(layout.hidden))
            linear = snn.ChannelLinear(
                features.num_channels, group.num_channels, bias=False, in_group=features, out_group=group
            )
            self.hidden.append(HiddenBlock(linear, layers.norm_neuron(group)))
            features = group
        self.classifier = snn.ChannelLinear(features.num_channels, num_classes, in_group=features)
        layers.check_widths(name)
        initialise(self)

    def make_stream(self, layers: Layers, name: str, channels: int, prunable: bool) -> Stream:
        """The residual stream of a stage."""
        return layers.group(name, channels, prunable)

    def make_stem_neuron(self, layers: Layers, stream: Stream) -> nn.Module | None:
        """What stands behind the first convolution: here batch norm + neuron."""
        return layers.norm_neuron(stream)

    @abstractmethod
    def make_block(
        self, layers: Layers, name: str, source: Stream, stream: Stream, inner: int, halves: bool
    ) -> nn.Module:
        """A block that reads ``source`` and adds to ``stream``, with ``inner`` channels between its convolutions.

        Args:
            halves: whether the map is halved, which takes a convolution on the shortcut; else source is stream.
        """

    def make_tail(self, layers: Layers, stream: Stream) -> tuple[nn.Module, snn.ChannelGroup]:
        """What stands between the last block and the mean over space, and the group of channels that come out."""
        return nn.Identity(), stream

    def features(self, x: Tensor, time_steps: int | None) -> Tensor:
        """``[T, N, C, H, W]`` -> the maps ``[T, N, C', H', W']`` whose means are classified."""
        x = self.run(self.stem, x, time_steps, spike_input=False)
        for block in self.blocks:
            x = self.run(block, x, spike_input=self.stream_is_spikes)
        return self.tail(x)

    def logits(self, x: Tensor, time_steps: int | None) -> Tensor:
        means = self.features(x, time_steps).mean((3, 4))
        for block in self.hidden:
            means = self.run(block, means, spike_input=False)
        return self.classifier(means)
