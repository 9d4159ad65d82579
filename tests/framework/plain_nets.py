"""Small networks of sca_kernels.nn layers as users write them, without channel groups: [N, 2, 8, 8] -> [N, 4]."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sca.structure.groups import find_groups
from sca_kernels import nn as snn
from tests.framework.pruning_nets import stripped

T = 3


def conv(source: int, sink: int, kernel_size: int = 3, **named) -> snn.ChannelConv2d:
    return snn.ChannelConv2d(source, sink, kernel_size, padding=kernel_size // 2, bias=False, **named)


def firing(channels: int, **named) -> snn.BatchNormLIF:
    """Biased, so that small untrained networks fire."""
    norm = snn.BatchNormLIF(channels, **named)
    nn.init.constant_(norm.bias, 0.6)
    return norm


class Vgg(nn.Module):
    """Blocks over [T * N] with pools, a spatial block of 4 in front of the hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv(2, 6), conv(6, 8, spike_input=True)])
        self.neurons = nn.ModuleList([firing(6), firing(8)])
        self.pool = snn.MaxPool2d(2)
        self.hidden = nn.Sequential(snn.ChannelLinear(8 * 4, 10, bias=False), nn.Identity())
        self.hidden_neuron = firing(10)
        self.dropout = nn.Dropout(0.0)
        self.head = snn.ChannelLinear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(0).repeat(T, 1, 1, 1, 1) if x.dim() == 4 else x
        for layer, neuron in zip(self.convs, self.neurons, strict=True):
            steps, samples = x.shape[:2]
            x = layer(x.flatten(0, 1)).view(steps, samples, -1, *x.shape[-2:])
            x = neuron(x)
            x = self.pool(x.flatten(0, 1)).unflatten(0, (steps, samples))
        x = self.hidden_neuron(self.hidden(torch.flatten(x, start_dim=2)))
        return self.head(self.dropout(x)).mean(0)


class Identity(nn.Module):
    """A residual block whose shortcut is the identity; spikes are added to spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.neuron = conv(2, 8), firing(8)
        self.conv1, self.neuron1 = conv(8, 6), firing(6)
        self.conv2, self.neuron2 = conv(6, 8), firing(8)
        self.head = snn.ChannelLinear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron(self.stem(x[None]), time_steps=T)
        x = x + self.neuron2(self.conv2(self.neuron1(self.conv1(x))))
        return self.head(x.mean((0, 3, 4)))


class Projection(nn.Module):
    """A residual block with a convolution on its shortcut; the sum of currents charges a neuron."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.neuron = conv(2, 6), firing(6)
        self.conv1, self.neuron1 = conv(6, 7, stride=2), firing(7)
        self.conv2, self.norm2 = conv(7, 8), snn.ChannelBatchNorm2d(8)
        self.shortcut = nn.Sequential(conv(6, 8, 1, stride=2), snn.ChannelBatchNorm2d(8))
        self.neuron2 = snn.LIF(v_threshold=0.5)
        self.head = snn.ChannelLinear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron(self.stem(x[None]), time_steps=T)
        y = self.norm2(self.conv2(self.neuron1(self.conv1(x))))
        y += self.shortcut(x)
        return self.head(self.neuron2(y).mean(dim=[3, 4])).mean(0)


class Dense(nn.Module):
    """Two levels of concatenation, read by a convolution and by a batch norm + neuron; the last is flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.neuron = conv(2, 5), firing(5)
        self.conv1, self.neuron1 = conv(5, 6), firing(6)
        self.norm2, self.conv2, self.neuron2 = firing(11), conv(11, 4), firing(4)
        self.pool = nn.AvgPool2d(4)
        self.head = snn.ChannelLinear(15 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron(self.stem(x[None]), time_steps=T)
        x = torch.cat([x, self.neuron1(self.conv1(x))], dim=2)
        x = torch.cat((x, self.neuron2(self.conv2(self.norm2(x)))), 2)
        x = self.pool(x.flatten(0, 1))
        return self.head(x.reshape(T, -1, x.shape[1] * 4)).mean(0)


class Shared(nn.Module):
    """One convolution and its neuron called twice, so that their input and output are one group."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.neuron = conv(2, 8), firing(8)
        self.conv, self.repeated = conv(8, 8), firing(8)
        self.head = snn.ChannelLinear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron(self.stem(x[None]), time_steps=T)
        for _ in range(2):
            x = self.repeated(self.conv(x))
        return self.head(x.mean((0, 3, 4)))


class Depthwise(nn.Module):
    """Pointwise - batch norm - depthwise - neuron, twice; no neuron in front of the depthwise ones."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.norm = conv(2, 8, 1), snn.ChannelBatchNorm2d(8)
        self.depthwise, self.neuron1 = conv(8, 8, groups=8), firing(8)
        self.project, self.neuron2 = conv(8, 6, 1), snn.BatchNormPLIF(6, per_channel=True)
        self.second, self.neuron3 = conv(6, 6, groups=6, stride=2), firing(6)
        self.head = snn.ChannelLinear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron1(self.depthwise(self.norm(self.expand(x[None]))), time_steps=T)
        x = self.neuron3(self.second(self.neuron2(self.project(x))))
        return self.head(x.mean((0, 3, 4)))


class Functional(nn.Module):
    """Functional pools and reshapes, an adaptive average pool, a loop over time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.neuron1 = conv(2, 6), firing(6)
        self.conv2, self.neuron2 = conv(6, 8), firing(8)
        self.head = snn.ChannelLinear(8 * 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron1(self.conv1(x[None]), time_steps=T)
        x = torch.stack([F.max_pool2d(frame, 2) for frame in x])
        x = self.neuron2(F.dropout(self.conv2(x), 0.0, self.training))
        x = F.adaptive_avg_pool2d(x.reshape(-1, *x.shape[2:]), 2)
        x = x.unflatten(0, (T, -1)).permute(1, 0, 2, 3, 4).sum(1) / T
        return self.head(x.flatten(1))


class Gated(nn.Module):
    """Squeeze and excitation: channels multiplied by weights that a second layer makes for each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.neuron = conv(2, 8), firing(8)
        self.squeeze, self.inner = snn.ChannelLinear(8, 6), firing(6)
        self.excite = snn.ChannelLinear(6, 8)
        self.head = snn.ChannelLinear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron(self.conv(x[None]), time_steps=T)
        weights = torch.sigmoid(self.excite(self.inner(self.squeeze(x.mean((3, 4))))))
        return self.head((x * weights[..., None, None]).mean((0, 3, 4)))


class Branches(nn.Module):
    """Two branches that are concatenated with the image itself and read by one convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.neuron_left = conv(2, 4), firing(4)
        self.right, self.neuron_right = conv(2, 6, 1), firing(6)
        self.joint, self.neuron = conv(12, 8), firing(8)
        self.head = snn.ChannelLinear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x[None].repeat(T, 1, 1, 1, 1)
        left, right = self.neuron_left(self.left(x)), self.neuron_right(self.right(x))
        return self.head(self.neuron(self.joint(torch.cat([left, x, right], -3))).mean((0, 3, 4)))


class Signals(nn.Module):
    """Images as rows of pixels: convolutions over one dimension, one depthwise, one transposed, with pools and borders
    between them; batch norms of signals and of vectors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = snn.ChannelConv1d(2, 6, 5, padding=2), snn.ChannelBatchNorm1d(6)
        self.neuron1 = snn.LIF(v_threshold=0.5)
        self.depthwise, self.neuron2 = snn.ChannelConv1d(6, 6, 3, groups=6), firing(6)
        self.conv2, self.neuron3 = snn.ChannelConv1d(6, 8, 3, stride=2), firing(8)
        self.widen, self.neuron4 = snn.ChannelConvTranspose1d(8, 7, 4, stride=2, bias=False), firing(7)
        self.border, self.pool = nn.ConstantPad1d((1, 0), 0.0), nn.AdaptiveAvgPool1d(3)
        self.hidden, self.norm5 = snn.ChannelLinear(7 * 3, 10), snn.ChannelBatchNorm1d(10)
        self.neuron5 = snn.LIF(v_threshold=0.5)
        self.head = snn.ChannelLinear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2) if x.dim() == 4 else x
        x = self.neuron1(self.norm1(self.conv1(x[None])), time_steps=T)
        x = self.depthwise(F.pad(F.avg_pool1d(x.flatten(0, 1), 2), (2, 0)))
        x = self.neuron3(self.conv2(self.neuron2(x.unflatten(0, (T, -1)))))
        x = F.max_pool1d(self.neuron4(self.widen(x)).flatten(0, 1), 2)
        x = self.hidden(self.pool(self.border(x)).flatten(1)).unflatten(0, (T, -1))
        return self.head(self.neuron5(self.norm5(x))).mean(0)


class Decoder(nn.Module):
    """Down and up again by transposed convolutions, one of them depthwise, beside what was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.neuron = conv(2, 5), firing(5)
        self.down, self.neuron1 = conv(5, 8, stride=2), firing(8)
        self.up, self.neuron2 = snn.ChannelConvTranspose2d(8, 6, 2, stride=2), firing(6)
        self.joint, self.neuron3 = conv(11, 7, stride=2), firing(7)
        self.enlarge, self.neuron4 = snn.ChannelConvTranspose2d(7, 7, 3, stride=2, groups=7, bias=False), firing(7)
        self.head = snn.ChannelLinear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.neuron(self.stem(x[None]), time_steps=T)
        y = self.up(self.neuron1(self.down(x)).flatten(0, 1), output_size=x.shape[-2:])
        x = self.neuron3(self.joint(torch.cat([x, self.neuron2(y.unflatten(0, (T, -1)))], 2)))
        return self.head(self.neuron4(self.enlarge(x)).mean((0, 3, 4)))


def sequential() -> nn.Sequential:
    """[T, N, 2, 8, 8] -> [T, N, 4], nothing but layers."""
    return nn.Sequential(
        conv(2, 6), firing(6), conv(6, 8, stride=2), firing(8), nn.Flatten(2), snn.ChannelLinear(8 * 16, 4)
    )


class Net(nn.Module):
    """conv1 - neuron1, ``middle``, conv2 - neuron2 - head, with what a test puts into the middle."""

    def __init__(self, middle, channels: int = 6, **modules: nn.Module) -> None:
        super().__init__()
        self.conv1, self.neuron1 = conv(2, 6), firing(6)
        self.conv2, self.neuron2 = conv(channels, 8), firing(8)
        self.head = snn.ChannelLinear(8, 4)
        self.middle = middle
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        s = self.neuron1(self.conv1(x[None]), time_steps=T)
        return self.head(self.neuron2(self.conv2(self.middle(self, s, x))).mean((0, 3, 4)))


def batch(n: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 2, 8, 8, generator=generator), torch.randint(4, (n,), generator=generator)


def loss_of(model: nn.Module) -> Tensor:
    x, labels = batch()
    return F.cross_entropy(model(x), labels)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss_of(model).backward()
    optimizer.step()


def masked(model: nn.Module) -> nn.Module:
    """The dense network whose neurons' dormant spikes are overwritten with 0: what pruning is to compute, by other
    means than those of the groups.
    """
    dense = stripped(model)
    for module, ours in zip(dense.modules(), model.modules(), strict=True):
        if hasattr(module, "activity") and ours.group is not None:
            dormant = ours.group.dormant

            def silence(_: nn.Module, __: tuple, spikes: Tensor, dormant: Tensor = dormant) -> Tensor:
                return spikes.index_fill(2, dormant, 0.0)

            module.register_forward_hook(silence)
    return dense


def wiring(model: nn.Module) -> dict[str, tuple[str, ...]]:
    return {
        name: tuple(" ".join(modules) for modules in (m.producers, m.carriers, m.consumers))
        for name, m in find_groups(model).items()
        if m.group.prunable
    }
