"""SEW ResNet: spikes are added to spikes, so that an idle branch leaves the residual stream as it is.

Fang et al., "Deep Residual Learning in Spiking Neural Networks" (NeurIPS 2021): blocks with the element-wise function
ADD, a neuron behind every batch norm, those on shortcuts included. The stream holds counts, 0, 1, 2, ...
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from .parts import Layers, by_frames
from .residual import Layout, Projection, ResidualNetwork, Stream


class Block(nn.Module):
    """Two times convolution 3x3, batch norm + neuron; their spikes are added to the shortcut's."""

    def __init__(self, layers: Layers, name: str, source: Stream, stream: Stream, inner: int, halves: bool) -> None:
        super().__init__()
        between = layers.group(f"{name}.conv1", inner)
        stride = 2 if halves else 1
        self.conv1 = layers.conv(source, between, 3, stride, spike_input=False)
        self.neuron1 = layers.norm_neuron(between)
        self.conv2 = layers.conv(between, stream, 3)
        self.neuron2 = layers.norm_neuron(stream)
        self.shortcut = (
            Projection(layers.conv(source, stream, 1, stride, spike_input=False), layers.norm_neuron(stream))
            if halves
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Counts ``[T, N, C, H, W]`` -> counts ``[T, N, C', H', W']``."""
        return self.neuron2(by_frames(self.conv2, self.neuron1(by_frames(self.conv1, x)))) + self.shortcut(x)


class SEWResNet(ResidualNetwork):
    """SEW ResNet; arguments as for :class:`sca.models.residual.ResidualNetwork`."""

    layouts: ClassVar[dict[str, Layout]] = {
        "sew_resnet18": Layout(((64, 2), (128, 2), (256, 2), (512, 2)), stems=("cifar", "imagenet")),
    }
    make_block = staticmethod(Block)


MODELS = dict.fromkeys(SEWResNet.layouts, SEWResNet)
