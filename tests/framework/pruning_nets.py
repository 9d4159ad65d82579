"""Small networks with channel groups, made by hand, for the pruning tests."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sca.structure.groups import carried, find_groups
from sca_kernels import nn as snn
from sca_kernels.nn.group import ROLES

T = 3

# A scheduler that prunes and regrows at each of four steps.
SETTINGS = {
    "start": 1,
    "stop": 4,
    "interval": 1,
    "density": 0.5,
    "schedule": "linear",
    "min_channels": 2,
    "regrow_fraction": 0.6,
}


class ConvNet(nn.Module):
    """conv - BN - LIF - pool - conv - BN - LIF - Flatten - linear, groups "first" and "second"; the first convolution
    runs once.
    """

    def __init__(self, first: int = 6, second: int = 8, **neuron) -> None:
        super().__init__()
        a, b = snn.ChannelGroup(first, "first"), snn.ChannelGroup(second, "second")
        self.conv1 = snn.ChannelConv2d(2, first, 3, padding=1, bias=False, out_group=a)
        self.norm1 = snn.BatchNormLIF(first, group=a, **neuron)
        self.conv2 = snn.ChannelConv2d(first, second, 3, padding=1, in_group=a, out_group=b, spike_input=True)
        self.norm2 = snn.BatchNormLIF(second, group=b, **neuron)
        self.linear = snn.ChannelLinear(second * 9, 4, in_group=b, features_per_channel=9)
        nn.init.constant_(self.norm1.bias, 0.6)  # so that small untrained networks fire
        nn.init.constant_(self.norm2.bias, 0.6)
        self.config = {"name": "convnet"}

    def forward(self, x: Tensor) -> Tensor:
        """[N, 2, 6, 6] -> [N, 4]."""
        s = self.norm1(self.conv1(x[None]), time_steps=T)
        s = nn.functional.max_pool2d(s.flatten(0, 1), 2).unflatten(0, (T, -1))
        return self.linear(self.norm2(self.conv2(s)).flatten(2)).mean(0)


class ResidualNet(nn.Module):
    """Two blocks of one tied group "stream", whose spikes are added; the second convolution reads and writes it."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        stream = snn.ChannelGroup(channels, "stream")
        self.conv1 = snn.ChannelConv2d(2, channels, 3, padding=1, bias=False, out_group=stream)
        self.norm1 = snn.BatchNormLIF(channels, group=stream)
        self.conv2 = snn.ChannelConv2d(channels, channels, 3, padding=1, bias=False, in_group=stream, out_group=stream)
        self.norm2 = snn.BatchNormLIF(channels, group=stream)
        self.linear = snn.ChannelLinear(channels, 4, in_group=stream)
        nn.init.constant_(self.norm1.bias, 0.6)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 2, H, W] -> [N, 4]."""
        s = self.norm1(self.conv1(x[None]), time_steps=T)
        return self.linear((s + self.norm2(self.conv2(s))).mean((0, 3, 4)))


class DepthwiseNet(nn.Module):
    """A depthwise convolution between two pointwise ones: its input and its output are one group, "depth"."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        depth, out = snn.ChannelGroup(channels, "depth"), snn.ChannelGroup(6, "out")
        self.expand = snn.ChannelConv2d(2, channels, 1, bias=False, out_group=depth)
        self.norm1 = snn.BatchNormIF(channels, group=depth)
        self.depthwise = snn.ChannelConv2d(
            channels, channels, 3, padding=1, groups=channels, in_group=depth, out_group=depth
        )
        self.norm2 = snn.BatchNormIF(channels, group=depth)
        self.project = snn.ChannelConv2d(channels, 6, 1, in_group=depth, out_group=out)
        self.norm3 = snn.BatchNormPLIF(6, per_channel=True, group=out)
        self.linear = snn.ChannelLinear(6, 4, in_group=out)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 2, H, W] -> [N, 4]."""
        s = self.norm1(self.expand(x[None]), time_steps=T)
        s = self.norm2(self.depthwise(s))
        return self.linear(self.norm3(self.project(s)).mean((0, 3, 4)))


class ConcatNet(nn.Module):
    """Two branches, "left" and "right", that are concatenated, and a "joint" behind, which reads both."""

    def __init__(self) -> None:
        super().__init__()
        left, right = (snn.ChannelGroup(4, name) for name in ("left", "right"))
        joint = snn.ChannelGroup(12, "joint")
        self.conv_left = snn.ChannelConv2d(2, 4, 3, padding=1, out_group=left)
        self.conv_right = snn.ChannelConv2d(2, 4, 1, out_group=right)
        self.norm_left, self.norm_right = snn.BatchNormLIF(4, group=left), snn.BatchNormLIF(4, group=right)
        both = snn.ChannelGroup.concat(left, right)
        self.conv = snn.ChannelConv2d(8, 12, 3, padding=1, in_group=both, out_group=joint)
        self.norm = snn.BatchNormLIF(12, group=joint)
        self.linear = snn.ChannelLinear(12, 4, in_group=joint)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 2, H, W] -> [N, 4]."""
        left = self.norm_left(self.conv_left(x[None]), time_steps=T)
        right = self.norm_right(self.conv_right(x[None]), time_steps=T)
        return self.linear(self.norm(self.conv(torch.cat([left, right], 2))).mean((0, 3, 4)))


class TiedNet(nn.Module):
    """Two convolutions that share one weight, and both of its groups."""

    def __init__(self, channels: int = 8, other_group: bool = False) -> None:
        super().__init__()
        group = snn.ChannelGroup(channels, "shared")
        out = snn.ChannelGroup(channels, "other") if other_group else group
        self.stem = snn.ChannelConv2d(2, channels, 1, out_group=group)
        self.norm0 = snn.BatchNormLIF(channels, group=group)
        self.conv1 = snn.ChannelConv2d(channels, channels, 3, padding=1, bias=False, in_group=group, out_group=group)
        self.norm1 = snn.BatchNormLIF(channels, group=group)
        self.conv2 = snn.ChannelConv2d(channels, channels, 3, padding=1, bias=False, in_group=group, out_group=out)
        self.conv2.weight = self.conv1.weight
        self.norm2 = snn.BatchNormLIF(channels, group=out)
        self.linear = snn.ChannelLinear(channels, 4, in_group=out)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 2, H, W] -> [N, 4]."""
        s = self.norm0(self.stem(x[None]), time_steps=T)
        s = self.norm2(self.conv2(self.norm1(self.conv1(s))))
        return self.linear(s.mean((0, 3, 4)))


def batch(n: int = 5) -> tuple[Tensor, Tensor]:
    """Inputs [n, 2, 6, 6] and labels [n], the same at every call."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 2, 6, 6, generator=generator), torch.randint(4, (n,), generator=generator)


def loss_of(model: nn.Module) -> Tensor:
    """Cross-entropy on :func:`batch`."""
    x, labels = batch()
    return nn.functional.cross_entropy(model(x), labels)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """One step on :func:`batch`; returns its loss."""
    optimizer.zero_grad()
    loss = loss_of(model)
    loss.backward()
    optimizer.step()
    return loss.item()


def active(model: nn.Module) -> dict[str, list[int]]:
    """Group -> its active channels."""
    return {name: members.group.active.tolist() for name, members in find_groups(model).items()}


def stripped(model: nn.Module) -> nn.Module:
    """A copy that knows no groups: the dense network."""
    model = copy.deepcopy(model)
    for module in model.modules():
        for role in ROLES:
            if carried(module, role) is not None:
                setattr(module, role, None)
    return model
