"""Spiking VGG (after Simonyan & Zisserman, ICLR 2015): convolution - batch norm - neuron, and max-pools.

VGG-16 is that of the SCA paper (Li et al., ICML 2024, section 5): 13 convolutions 3x3 without bias, five max-pools, two
hidden layers of 512 neurons with batch norm, a linear classifier. The others follow the same pattern; the number counts
the layers with weights.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sca_kernels import nn as snn

from .network import Network
from .parts import HiddenBlock, Layers, by_frames, check_positive, initialise, sides_of

HIDDEN_WIDTH = 512

# family member: (convolutions between pools, hidden fully-connected layers)
_LAYOUTS: dict[str, tuple[tuple[tuple[int, ...], ...], int]] = {
    "vgg5": (((64,), (128, 128)), 1),
    "vgg9": (((64, 64), (128, 128), (256, 256, 256)), 1),
    "vgg11": (((64,), (128,), (256, 256), (512, 512), (512, 512)), 2),
    "vgg16": (((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3), 2),
    "vgg19": (((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4), 2),
}


class ConvBlock(nn.Module):
    """Convolution 3x3, batch norm + neuron, and the max-pool behind them if there is one; all at the active width."""

    def __init__(self, conv: snn.ChannelConv2d, neuron: nn.Module, pool: bool) -> None:
        super().__init__()
        self.conv, self.neuron = conv, neuron
        self.pool = snn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, x: Tensor, time_steps: int | None = None) -> Tensor:
        """``[T, N, C, H, W]`` -> spikes ``[T, N, C', H', W']``; with ``time_steps``, one step in and that many out."""
        current = by_frames(self.conv, x)
        spikes = self.neuron(current, time_steps=time_steps)
        return self.pool(spikes.flatten(0, 1)).unflatten(0, spikes.shape[:2])


class VGG(Network):
    """Spiking VGG with one :class:`sca_kernels.nn.ChannelGroup` per hidden layer: ``conv1``, ..., ``fc1``, ...

    Args:
        name: ``vgg5``, ``vgg9``, ``vgg11``, ``vgg16`` or ``vgg19``.
        num_classes: number of labels.
        in_channels: channels of the images.
        time_steps: T, the number of steps that a still image is presented for (direct encoding).
        neuron: ``if``, ``lif`` or ``plif``.
        image_size: side in pixels, or (height, width). A pool whose map would vanish is left out.
        width: factor on all hidden widths.
        widths: number of channels of the groups named here, for a physically smaller network (:func:`sca.compact`).
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
        checkpointing: bool = False,
        **neuron_arguments: Any,
    ) -> None:
        super().__init__()
        height, columns = sides_of(image_size)
        numbers = check_positive(num_classes=num_classes, in_channels=in_channels, time_steps=time_steps)
        num_classes, in_channels, time_steps = numbers.values()
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
            "checkpointing": checkpointing,
            **neuron_arguments,
        }

        stages, num_hidden = _LAYOUTS[name]
        previous: snn.ChannelGroup | None = None
        self.features = nn.ModuleList()
        for stage in stages:
            pooled = min(height, columns) >= 2
            for position, channels in enumerate(stage, 1):
                group = layers.group(f"conv{len(self.features) + 1}", layers.scaled(channels))
                conv = layers.conv(previous or in_channels, group, 3, spike_input=previous is not None)
                neuron_layer = layers.norm_neuron(group)
                self.features.append(ConvBlock(conv, neuron_layer, pool=pooled and position == len(stage)))
                previous = group
            if pooled:
                height, columns = height // 2, columns // 2

        positions = height * columns
        self.hidden = nn.ModuleList()
        for number in range(1, num_hidden + 1):
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
        first, *others = self.features
        spikes = self.run(first, x, time_steps, spike_input=False)
        for block in others:
            spikes = self.run(block, spikes)
        spikes = spikes.flatten(2)
        for block in self.hidden:
            spikes = self.run(block, spikes)
        return self.classifier(spikes)


MODELS = dict.fromkeys(_LAYOUTS, VGG)
