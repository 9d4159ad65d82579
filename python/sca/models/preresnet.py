"""Spiking ResNet, pre-activation: batch norm, neuron, convolution; the residual stream is a sum of currents.

Blocks after He et al., "Identity Mappings in Deep Residual Networks" (ECCV 2016), with a neuron for each ReLU; where
the map is halved, the shortcut reads the spikes, too. In front of each first convolution (and of the classifier) stands
a selection of channels, after Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (ICCV
2017): it is the block's own, for the stream keeps all of its channels. With ``prune_stream`` the stream loses channels
instead, and all readers the same.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from sca_kernels import nn as snn

from .parts import Layers, by_frames
from .residual import Layout, ResidualNetwork, Stream


class Block(nn.Module):
    """Two times batch norm + neuron, convolution 3x3, added to the stream."""

    def __init__(self, layers: Layers, name: str, source: Stream, stream: Stream, inner: int, halves: bool) -> None:
        super().__init__()
        self.select, selected = selection(layers, f"{name}.select", source)
        between = layers.group(f"{name}.conv1", inner)
        stride = 2 if halves else 1
        self.neuron1 = layers.norm_neuron(selected)
        self.conv1 = layers.conv(selected, between, 3, stride)
        self.neuron2 = layers.norm_neuron(between)
        self.conv2 = layers.conv(between, stream, 3)
        self.shortcut = layers.conv(selected, stream, 1, stride) if halves else None

    def forward(self, x: Tensor, time_steps: int | None) -> Tensor:
        """Currents ``[T, N, C, H, W]``, or one step to be presented ``time_steps`` times -> ``[T, N, C', H', W']``."""
        spikes = self.neuron1(self.select(x), time_steps=time_steps)
        current = by_frames(self.conv2, self.neuron2(by_frames(self.conv1, spikes)))
        return current + (x if self.shortcut is None else by_frames(self.shortcut, spikes))


class PreResNet(ResidualNetwork):
    """Pre-activation ResNet; arguments as for :class:`sca.models.residual.ResidualNetwork`.

    The readers of a stream have groups ``stage1.block1.select``, ..., ``select``; with ``prune_stream`` they share the
    stream's. Its ImageNet stem pools currents, since batch norm and neuron stand in the first block.
    """

    layouts: ClassVar[dict[str, Layout]] = {
        "preresnet18": Layout(((64, 2), (128, 2), (256, 2), (512, 2)), stems=("cifar", "imagenet")),
        "preresnet20": Layout(((16, 3), (32, 3), (64, 3))),
    }
    make_block = staticmethod(Block)

    def make_stream(self, layers: Layers, name: str, channels: int, prunable: bool) -> Stream:
        return super().make_stream(layers, name, channels, prunable) if prunable else channels

    def make_stem_neuron(self, layers: Layers, stream: Stream) -> None:
        return None

    def make_tail(self, layers: Layers, stream: Stream) -> tuple[nn.Module, snn.ChannelGroup]:
        select, selected = selection(layers, "select", stream)
        return nn.Sequential(select, layers.norm_neuron(selected)), selected

    def features(self, x: Tensor, time_steps: int | None) -> Tensor:
        x = self.run(self.stem, x, time_steps, spike_input=False)
        for block in self.blocks:
            x = self.run(block, x, time_steps, spike_input=False)
        return self.tail(x)


def selection(layers: Layers, name: str, stream: Stream) -> tuple[nn.Module, snn.ChannelGroup]:
    """What a reader of the stream takes of it, and the group that says which channels these are."""
    if isinstance(stream, snn.ChannelGroup):
        return nn.Identity(), stream
    group = layers.group(name, stream)
    return snn.ChannelSelect(stream, group), group


MODELS = dict.fromkeys(PreResNet.layouts, PreResNet)
