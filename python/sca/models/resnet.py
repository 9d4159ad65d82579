"""Spiking ResNet, post-activation: the neuron behind each addition fires into the residual stream.

Blocks after He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016), with a neuron for each ReLU, as in
Zheng et al., "Going Deeper With Directly-Trained Larger Spiking Neural Networks" (AAAI 2021). ResNet-18: the former's
table 1, shortcuts of type B; ResNet-20: its section 4.2, shortcuts of type B too; ResNet-19: the latter's, whose 256
hidden neurons have a batch norm here. The number counts the layers with weights, those on shortcuts aside.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sca_kernels import functional

from .parts import Layers, by_frames
from .residual import Layout, Projection, ResidualNetwork, Stream


class Block(nn.Module):
    """Two convolutions 3x3; the sum of the second one's batch norm and of the shortcut charges the last neuron."""

    def __init__(self, layers: Layers, name: str, source: Stream, stream: Stream, inner: int, halves: bool) -> None:
        super().__init__()
        between = layers.group(f"{name}.conv1", inner)
        stride = 2 if halves else 1
        self.conv1 = layers.conv(source, between, 3, stride)
        self.neuron1 = layers.norm_neuron(between)
        self.conv2 = layers.conv(between, stream, 3)
        self.norm2 = layers.norm(stream)
        self.shortcut = (
            Projection(layers.conv(source, stream, 1, stride), layers.norm(stream)) if halves else nn.Identity()
        )
        self.neuron2 = layers.neuron(stream)

    def forward(self, x: Tensor) -> Tensor:
        """Spikes ``[T, N, C, H, W]`` -> spikes ``[T, N, C', H', W']``."""
        current = self.norm2(by_frames(self.conv2, self.neuron1(by_frames(self.conv1, x))))
        return self.neuron2(current + self.shortcut(x))

    @torch.no_grad()
    def start_as_shortcut(self, time_steps: int) -> None:
        """Begin with a branch that says little, so that what comes in on the shortcut goes out again.

        Otherwise the branch decides, since a spike alone does not charge a leaky neuron to its threshold, and behind
        nine such blocks nothing is left of the image: of what the last block of resnet20 (half as wide) says of the
        digits, a linear classifier tells 7 % as torch initialises batch norms, and about half like this. The bias lies
        between the currents with which a spike just fires and without which none does for ``time_steps``; where the
        leak is so slow that there is none between them, everything stays as torch has it.
        """
        if self.norm2.weight is None or self.norm2.weight.is_meta:
            return
        with_spike = max(0.0, firing_current(self.neuron2, 1) - 1.0)
        room = firing_current(self.neuron2, time_steps) - with_spike
        if room <= 0:
            return
        self.norm2.weight.fill_(min(0.1, 0.15 * room))
        if isinstance(self.shortcut, nn.Identity):
            self.norm2.bias.fill_(with_spike + room / 2)


def firing_current(neuron: nn.Module, steps: int) -> float:
    """The constant current that charges a neuron from its reset value to its threshold within ``steps`` steps. Charge
    equations are linear in the current: what a current of 1 does, far below any threshold, tells."""
    settings, w, start = neuron.arguments, neuron.leak_parameter(), neuron.rest()
    current = torch.ones(1, 1, 1 if w is None else w.numel(), 1, device=None if w is None else w.device)
    never_fires = {**settings, "v_threshold": math.inf, "backend": None}
    charged = functional.neuron(current, neuron.neuron, w=w, time_steps=steps, **never_fires).v - start
    return (neuron.firing_threshold() - start) / float(charged.mean())


class ResNet(ResidualNetwork):
    """Spiking ResNet; arguments as for :class:`sca.models.residual.ResidualNetwork`."""

    layouts: ClassVar[dict[str, Layout]] = {
        "resnet18": Layout(((64, 2), (128, 2), (256, 2), (512, 2)), stems=("cifar", "imagenet")),
        "resnet19": Layout(((128, 3), (256, 3), (512, 2)), hidden=256),
        "resnet20": Layout(((16, 3), (32, 3), (64, 3))),
    }
    stream_is_spikes = True
    make_block = staticmethod(Block)

    def __init__(self, name: str, **arguments: Any) -> None:
        super().__init__(name, **arguments)
        for block in self.blocks:
            block.start_as_shortcut(self.time_steps)


MODELS = dict.fromkeys(ResNet.layouts, ResNet)
