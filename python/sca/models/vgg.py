"""Spiking VGG (after Simonyan & Zisserman, ICLR 2015): convolution - batch norm - neuron, and pools.

VGG-16 is that of the SCA paper (Li et al., ICML 2024, section 5): 13 convolutions 3x3 without bias, five max-pools, two
hidden layers of 512 neurons with batch norm, a linear classifier. The others with a number follow the same pattern; it
counts the layers with weights. Two are made for event cameras, with average pools and no hidden layer: ``conv5fc1`` is
that of the same paper, called "5Conv, 1FC" in the literature; ``vggsnn`` that of Deng et al., "Temporal Efficient
Training of Spiking Neural Network via Gradient Re-weighting" (ICLR 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sca_kernels import checks
from sca_kernels import nn as snn

from .network import Network
from .parts import HiddenBlock, Layers, by_frames, check_positive, initialise, sides_of

HIDDEN_WIDTH = 512

POOLS = {"max": snn.MaxPool2d, "avg": snn.AvgPool2d}


@dataclass(frozen=True)
class Layout:
    """One family member.

    Attributes:
        stages: channels of the convolutions; behind each stage stands a pool.
        hidden: number of hidden fully-connected layers.
        pool: a key of ``POOLS``, where none is asked for.
    """

    stages: tuple[tuple[int, ...], ...]
    hidden: int = 0
    pool: str = "max"


_LAYOUTS = {
    "vgg5": Layout(((64,), (128, 128)), hidden=1),
    "vgg9": Layout(((64, 64), (128, 128), (256, 256, 256)), hidden=1),
    "vgg11": Layout(((64,), (128,), (256, 256), (512, 512), (512, 512)), hidden=2),
    "vgg16": Layout(((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3), hidden=2),
    "vgg19": Layout(((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4), hidden=2),
    "conv5fc1": Layout(((64,), (128,), (128,), (256,), (256,)), pool="avg"),
    "vggsnn": Layout(((64, 128), (256, 256), (512, 512), (512, 512)), pool="avg"),
}


class ConvBlock(nn.Module):
    """Convolution 3x3, batch norm + neuron, and the pool behind them if there is one; all at the active width."""

    def __init__(self, conv: snn.ChannelConv2d, neuron: nn.Module, pool: nn.Module) -> None:
        super().__init__()
        self.conv, self.neuron, self.pool = conv, neuron, pool

    @property
    def gives_spikes(self) -> bool:
        """Whether its output holds zeros and ones only; averages of spikes are others."""
        return not isinstance(self.pool, nn.AvgPool2d)

    def forward(self, x: Tensor, time_steps: int | None = None) -> Tensor:
        """``[T, N, C, H, W]`` -> pooled spikes ``[T, N, C', H', W']``; with ``time_steps``, one step in and that many
        out."""
        current = by_frames(self.conv, x)
        spikes = self.neuron(current, time_steps=time_steps)
        return self.pool(spikes.flatten(0, 1)).unflatten(0, spikes.shape[:2])


class VGG(Network):
    """Spiking VGG with one :class:`sca_kernels.nn.ChannelGroup` per hidden layer: ``conv1``, ..., ``fc1``, ...

    Args:
        name: ``vgg5``, ``vgg9``, ``vgg11``, ``vgg16``, ``vgg19``, ``conv5fc1`` or ``vggsnn``.
        num_classes: number of labels.
        in_channels: channels of the images.
        time_steps: T, the number of steps that a still image is presented for (direct encoding).
        neuron: ``if``, ``lif`` or ``plif``.
        image_size: side in pixels, or (height, width). A pool whose map would vanish is left out.
        width: factor on all hidden widths.
        widths: number of channels of the groups named here, for a physically smaller network (:func:`sca.compact`).
        pool: ``max`` or ``avg``; None: the original's.
        checkpointing: keep only each block's input for the backward pass, a bit per spike, and run the block again
            there: less memory, a second forward pass, the same gradients.
        neuron_arguments: passed to the batch-norm neurons (``tau``, ``surrogate``, ``detach_reset``, ...).

    Attributes:
        config: plain dict with all of the above; ``sca.models.build(**config)`` makes the same architecture.

    Raises:
        ValueError: an argument is out of range, or ``widths`` names a group that does not exist.
    """

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
        pool: str | None = None,
        checkpointing: bool = False,
        **neuron_arguments: Any,
    ) -> None:
        super().__init__()
        height, columns = sides_of(image_size)
        numbers = check_positive(num_classes=num_classes, in_channels=in_channels, time_steps=time_steps)
        num_classes, in_channels, time_steps = numbers.values()
        layout = _LAYOUTS[name]
        pool = layout.pool if pool is None else checks.one_of("pool", pool, POOLS)
        layers = Layers(neuron, width, widths, neuron_arguments)
        self.time_steps = time_steps
        self.init_checkpointing(checkpointing, neuron_arguments)
        self.config = {
            "name": name,
            **numbers,
            "neuron": neuron,
            "image_size": [height, columns],
            "width": width,
            "widths": widths,
            "pool": pool,
            "checkpointing": checkpointing,
            **neuron_arguments,
        }

        previous: snn.ChannelGroup | None = None
        spikes = False  # whether that is what the next convolution reads
        self.features = nn.ModuleList()
        for stage in layout.stages:
            pooled = min(height, columns) >= 2
            for position, channels in enumerate(stage, 1):
                group = layers.group(f"conv{len(self.features) + 1}", layers.scaled(channels))
                conv = layers.conv(previous or in_channels, group, 3, spike_input=spikes)
                behind = POOLS[pool](2) if pooled and position == len(stage) else nn.Identity()
                block = ConvBlock(conv, layers.norm_neuron(group), behind)
                self.features.append(block)
                previous, spikes = group, block.gives_spikes
            if pooled:
                height, columns = height // 2, columns // 2

        positions = height * columns
        self.hidden = nn.ModuleList()
        for number in range(1, layout.hidden + 1):
            group = layers.group(f"fc{number}", layers.scaled(HIDDEN_WIDTH))
            linear = self._linear(previous, positions, group.num_channels, bias=False, out_group=group)
            self.hidden.append(HiddenBlock(linear, layers.norm_neuron(group)))
            previous, positions = group, 1
        self.classifier = self._linear(previous, positions, num_classes)

        layers.check_widths(name)
        initialise(self)

    @staticmethod
    def _linear(group: snn.ChannelGroup, positions: int, out_features: int, **arguments: Any) -> snn.ChannelLinear:
        return snn.ChannelLinear(
            group.num_channels * positions,
            out_features,
            in_group=group,
            features_per_channel=positions,
            **arguments,
        )

    def logits(self, x: Tensor, time_steps: int | None) -> Tensor:
        spikes = False  # whether x holds zeros and ones only
        for block in self.features:
            x = self.run(block, x, time_steps, spike_input=spikes)
            time_steps, spikes = None, block.gives_spikes
        x = x.flatten(2)
        for block in self.hidden:
            x = self.run(block, x, spike_input=spikes)
            spikes = True
        return self.classifier(x)


MODELS = dict.fromkeys(_LAYOUTS, VGG)
