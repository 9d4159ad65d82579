"""The habits of three research repositories, in networks of our own: Temporal Efficient Training, Neuromorphic Data
Augmentation and Complementary LIF. Nothing of SpikingJelly is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import spikingjelly_old as old
from .net import ForeignNet, events, liven, normal, seeded, settle, stateless


def forward(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


class Framewise(nn.Module):
    """Runs layers on the frames of the first two dimensions, which are those of SpikingJelly's SeqToANNContainer with
    batch and time the other way round."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.inner = layers[0] if len(layers) == 1 else nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x.flatten(0, 1).contiguous())
        return y.view(x.shape[0], x.shape[1], *y.shape[1:])


class _Above(torch.autograd.Function):
    """1 above the threshold, 0 on it; in the gradient, a triangle of this width."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.width = width
        return (x > 0).float()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * (ctx.width - x.abs()).clamp(min=0) / ctx.width**2, None


class Spiking(nn.Module):
    """[N, T, ...] -> spikes, from the potential 0, a Python number; ``tau`` is what is kept of it per step."""

    def __init__(self, level: float = 1.0, tau: float = 0.5, width: float = 1.0) -> None:
        super().__init__()
        self.fire = _Above.apply
        self.level = level
        self.tau = tau
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        u, fired = 0, []
        for t in range(x.shape[1]):
            u = u * self.tau + x[:, t]
            s = self.fire(u - self.level, self.width)
            u = (1 - s) * u
            fired.append(s)
        return torch.stack(fired, dim=1)


class Stage(nn.Module):
    def __init__(self, source: int, sink: int) -> None:
        super().__init__()
        self.current = Framewise(nn.Conv2d(source, sink, 3, padding=1), nn.BatchNorm2d(sink))
        self.spiking = Spiking()

    def forward(self, x: Tensor) -> Tensor:
        return self.spiking(self.current(x))


class PooledVgg(nn.Module):
    """[N, T, 2, 32, 32] -> [N, T, 10]."""

    def __init__(self, widths: Sequence[int] = (6, 8, 10, 10, 12, 12, 12, 12)) -> None:
        super().__init__()
        half = Framewise(nn.AvgPool2d(2))
        stages: list[nn.Module] = []
        for index, (source, sink) in enumerate(zip((2, *widths), widths, strict=False)):
            stages += [Stage(source, sink), half] if index % 2 else [Stage(source, sink)]
        self.stages = nn.Sequential(*stages)
        self.readout = Framewise(nn.Linear(widths[-1] * 4, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(torch.flatten(self.stages(x), 2))


def _recording() -> Tensor:
    return events(3, 5, 2, 32, 32, seed=21)


def _pooled() -> nn.Module:
    with seeded(22):
        model = PooledVgg()
    liven(model, 0.8, 0.1)
    settle(model.train(), lambda: model(_recording()), stateless)
    return model


class PerFrame(nn.Module):
    """As Framewise, for one layer, by reshape."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        n, t, *rest = x.shape
        y = self.layer(x.reshape(n * t, *rest))
        return y.view(n, t, *y.shape[1:]).contiguous()


def step_of_width(gamma: float) -> Callable[[Tensor], Tensor]:
    """A new autograd.Function at each call: its gradient is 1 / gamma closer to the threshold than gamma / 2, and it
    returns one gradient too many."""

    class Fire(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return (x >= 0).float()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            (x,) = ctx.saved_tensors
            return grad * (x.abs() < gamma / 2).float() / gamma, None

    return Fire.apply


class Membrane(nn.Module):
    """[N, T, ...] -> spikes; ``tau`` is what is kept of the potential per step."""

    def __init__(self, level: float = 0.5, tau: float = 0.25, gamma: float = 1.0) -> None:
        super().__init__()
        self.level = level
        self.tau = tau
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        u, fired = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            u = u * self.tau + x[:, t]
            s = step_of_width(self.gamma)(u - self.level)
            u = (1 - s) * u
            fired.append(s)
        return torch.stack(fired, dim=1)


class NormOverTime(nn.BatchNorm2d):
    """A batch norm whose input is [N, T, C, H, W], and whose gain begins at half."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.weight.data.mul_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        n, t, *rest = x.shape
        return super().forward(x.reshape(n * t, *rest)).view(n, t, *rest).contiguous()


def repeated(x: Tensor, steps: int) -> Tensor:
    """[N, C, H, W] -> [N, T, C, H, W], which changes the shape of the caller's tensor to [N, 1, C, H, W]."""
    x.unsqueeze_(1)
    return x.repeat(1, steps, 1, 1, 1)


class ImageVgg(nn.Module):
    """[N, 3, 16, 16] -> [N, T, 10]; ``steps`` is set from outside, and read by a function that a copy shares."""

    def __init__(self, widths: Sequence[int | str] = (6, "half", 8, "half", 10, 10, "half", 12, 12, 12, 12)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in widths:
            if isinstance(width, str):
                layers.append(PerFrame(nn.AvgPool2d(2)))
            else:
                layers += [PerFrame(nn.Conv2d(channels, width, 3, padding=1)), NormOverTime(width), Membrane()]
                channels = width
        self.layers = nn.Sequential(*layers)
        self.pool = Framewise(nn.AdaptiveAvgPool2d((1, 1)))
        self.readout = nn.Sequential(Framewise(nn.Linear(channels, 10)))
        self.with_time = lambda x: repeated(x, self.steps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.with_time(x) if x.dim() == 4 else x
        x = self.pool(self.layers(x))
        return self.readout(torch.flatten(x, 2))


def _image() -> Tensor:
    return normal(3, 3, 16, 16, seed=23)


def _image_vgg() -> nn.Module:
    with seeded(24):
        model = ImageVgg()
    model.steps = 4
    settle(model.train(), lambda: model(_image()), stateless)
    return model


class _Box(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, width: float) -> Tensor:
        if x.requires_grad:
            ctx.save_for_backward(x)
            ctx.width = width
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        outside = x.abs() > ctx.width / 2
        return grad * torch.full_like(x, 1.0 / ctx.width).masked_fill(outside, 0.0), None


class Box(old.SurrogateFunctionBase):
    """1 / alpha where |u| <= alpha / 2, and no more: its ``alpha`` is a width, not a slope."""

    def __init__(self, alpha: float = 1.0, spiking: bool = True) -> None:
        super().__init__(alpha, spiking)

    @staticmethod
    def spiking_function(x: Tensor, alpha: float) -> Tensor:
        return _Box.apply(x, alpha)


class BackpropagatedNeuron(old.LIFNode):
    """A LIFNode with other defaults, which overrides nothing; its name is that of a way to train."""

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = False,
        v_threshold: float = 1.0,
        v_reset: float | None = None,
        surrogate_function: nn.Module | None = None,
        detach_reset: bool = False,
        cupy_fp32_inference: bool = False,
        **unread: Any,
    ) -> None:
        box = surrogate_function or Box()
        super().__init__(tau, decay_input, v_threshold, v_reset, box, detach_reset, cupy_fp32_inference)


class ComplementaryNeuron(BackpropagatedNeuron):
    """A LIFNode too, but with a second memory ``m``, which adds to what a spike takes away: the recurrence of the paper
    "CLIF: Complementary Leaky Integrate-and-Fire Neuron for Spiking Neural Networks"."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.register_memory("m", 0.0)

    def forward(self, x: Tensor) -> Tensor:
        kept = 1 - 1.0 / self.tau
        h = x if isinstance(self.v, float) else self.v * kept + x
        s = self.surrogate_function(h - self.v_threshold)
        self.m = self.m * torch.sigmoid(h / self.tau) + s
        self.v = h - s * self.v_threshold - s * torch.sigmoid(self.m)
        return s


class StepVgg(nn.Module):
    """[N, 2, 16, 16] -> [N, 10], one step; all neurons are given one and the same surrogate, and SpikingJelly's
    dropout of rate 0 behind each."""

    def __init__(
        self,
        neuron: Callable[..., nn.Module],
        stages: Sequence[Sequence[int]] = ((6,), (8,), (10, 10), (12, 12), (12, 12)),
        **named: Any,
    ) -> None:
        super().__init__()
        channels = 2
        for index, widths in enumerate(stages):
            layers: list[nn.Module] = []
            for width in widths:
                convolution = nn.Conv2d(channels, width, 3, padding=1, bias=True)
                layers += [convolution, nn.BatchNorm2d(width), neuron(**named), old.Dropout(0.0)]
                channels = width
            if index < 3:
                layers.append(nn.AvgPool2d(2))
            setattr(self, f"stage{index}", nn.Sequential(*layers))
        self.pool = nn.AdaptiveAvgPool2d((2, 2))
        self.readout = nn.Sequential(nn.Flatten(), nn.Linear(channels * 4, 10))

    def forward(self, x: Tensor) -> Tensor:
        for index in range(5):
            x = getattr(self, f"stage{index}")(x)
        return self.readout(self.pool(x))


def _frames() -> Tensor:
    return events(6, 3, 2, 16, 16, seed=25)


def step_by_step(model: nn.Module, x: Tensor) -> Tensor:
    """The training script's loop."""
    return torch.stack([model(step) for step in x])


def _step_vgg(neuron: type) -> nn.Module:
    with seeded(26):
        model = StepVgg(neuron, tau=2.0, surrogate_function=Box(), in_channels=2)
    liven(model, 0.6, 0.2)
    settle(model.train(), lambda: step_by_step(model, _frames()), old.reset_net)
    return model


_IMAGE_LAYERS = tuple(
    name for index in (0, 4, 8, 11, 15, 18, 21, 24) for name in (f"layers.{index}.layer", f"layers.{index + 1}")
)
_STEP_LAYERS = ("stage?.[01]", "stage[2-4].[45]", "readout.1")

NETS = (
    ForeignNet(
        name="tet_vggsnn",
        origin="Temporal Efficient Training",
        build=_pooled,
        example=_recording,
        call=forward,
        reset=stateless,
        trap="the neuron's `tau` is a decay of 0.5, and it fires at `>`; batch first; one pool object in four places, "
        "of which named_modules shows one; a container that looks like SpikingJelly's",
        convertible=("stages.*.spiking",),
        layers=("stages.*.inner.?", "readout.inner"),
        time="NT",
    ),
    ForeignNet(
        name="nda_vgg11",
        origin="Neuromorphic Data Augmentation",
        build=_image_vgg,
        example=_image,
        call=forward,
        reset=stateless,
        trap="the caller's tensor is unsqueezed in place, so a second pass over it has T = 1; a batch norm subclass "
        "with its own forward over [N, T]; a box of width gamma for a gradient, of a class made at each step; a "
        "lambda over self, which a copy shares with its original",
        convertible=tuple(f"layers.{index}" for index in (2, 6, 10, 13, 17, 20, 23, 26)),
        layers=(*_IMAGE_LAYERS, "readout.0.inner"),
        time="N>NT",
    ),
    ForeignNet(
        name="clif_vgg11_bptt",
        origin="Complementary LIF",
        build=lambda: _step_vgg(BackpropagatedNeuron),
        example=_frames,
        call=step_by_step,
        reset=old.reset_net,
        trap="the neuron's name says nothing of it: an empty subclass of a LIFNode, soft reset, v x (1 - 1 / tau); the "
        "loop over time is the training script's; one surrogate of its own, inclusive of the border, shared by "
        "all neurons",
        convertible=("stage?.2", "stage?.6"),
        layers=_STEP_LAYERS,
        time="single",
    ),
    ForeignNet(
        name="clif_vgg11_complementary",
        origin="Complementary LIF",
        build=lambda: _step_vgg(ComplementaryNeuron),
        example=_frames,
        call=step_by_step,
        reset=old.reset_net,
        trap="a LIFNode by inheritance, but with a second memory: refused",
        convertible=(),
        refused=("stage?.2", "stage?.6"),
        layers=_STEP_LAYERS,
        time="single",
    ),
)
