"""The peers' twins of our networks: the same layers and parameter values, each in its fastest setting.

A peer that is not installed is None: it is reported as not measured.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..models.vgg import VGG

ALPHA = 2.0  # slope of the arctangent surrogate, in all parties
SETTINGS = {
    "neuron": "lif",
    "tau": 2.0,
    "v_threshold": 1.0,
    "v_reset": 0.0,
    "decay_input": True,
    "surrogate": "atan",
    "alpha": ALPHA,
    "eps": 1e-5,
}
"""Neurons and batch norms of a twin, in the names of a network's ``config``; what that leaves out is the same."""


def installed(package: str) -> bool:
    """Whether a package can be imported; it is not."""
    return importlib.util.find_spec(package) is not None


def no_twin(model: nn.Module) -> str:
    """Why the twins below would not be this network; empty where they are."""
    if not isinstance(model, VGG):
        return f"no twin of {model.config['name']}"
    own = {name: model.config.get(name, value) for name, value in SETTINGS.items()}
    differing = [
        f"{name} = {value:.4g}" if isinstance(value, float) else f"{name} = {value}"
        for name, value in own.items()
        if value != SETTINGS[name]
    ]
    return f"no twin with {', '.join(differing)}" if differing else ""


class _StepByStep(nn.Module):
    """A cell ``cell(x, v) -> spikes, v`` over the halves of x [T, N, ...], v starting from zero."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        spikes = []
        for step in x / 2:
            s, v = self.cell(step, v)
            spikes.append(s)
        return torch.stack(spikes)


def snntorch_lif(detach_reset: bool = False) -> nn.Module | None:
    """snnTorch's Leaky with beta 1/2 on half the current: h = v/2 + x/2, which is LIF with tau 2, over x [T, N, ...].

    Its delayed reset acts at the beginning of the next step, on the same potentials, and is detached.
    """
    if not installed("snntorch"):
        return None
    import snntorch

    return _StepByStep(
        snntorch.Leaky(
            beta=0.5,
            threshold=1.0,
            spike_grad=snntorch.surrogate.atan(ALPHA),
            reset_mechanism="zero",
            reset_delay=detach_reset,
        )
    )


class _Steps(nn.Sequential):
    """Stateless layers over [T, N, ...], all steps at once."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class _Twin(nn.Module):
    """One of our VGGs out of torch's layers and a peer's neurons, parameter values included.

    Like ours, it computes the first convolution of a still image and its batch norm once, presents the result T times,
    and runs in channels_last.

    Args:
        model: a :class:`sca.models.vgg.VGG`.
        over_time: makes a module over [T, N, ...] of stateless layers.
        neuron: makes one layer's neurons.
        reset: called with the twin before each pass.
    """

    def __init__(
        self,
        model: nn.Module,
        over_time: Callable[..., nn.Module],
        neuron: Callable[[], nn.Module],
        reset: Callable[[nn.Module], object],
    ) -> None:
        super().__init__()
        self.time_steps, self._clear = model.time_steps, reset

        def convolution(block: nn.Module) -> tuple[nn.Module, nn.Module]:
            ours = block.conv
            theirs = nn.Conv2d(ours.in_channels, ours.out_channels, kernel_size=3, padding=1, bias=False)
            return theirs, nn.BatchNorm2d(ours.out_channels)

        body: list[nn.Module] = []
        for block in model.features:
            if body:
                body.append(over_time(*convolution(block)))
            body.append(neuron())
            body += [over_time(pool(2)) for pool in (nn.MaxPool2d, nn.AvgPool2d) if isinstance(block.pool, pool)]
        body.append(nn.Flatten(2))
        for block in model.hidden:
            ours = block.linear
            linear = nn.Linear(ours.in_features, ours.out_features, bias=False)
            body += [over_time(linear, nn.BatchNorm1d(ours.out_features)), neuron()]
        body.append(nn.Linear(model.classifier.in_features, model.classifier.out_features))
        self.stem = _Steps(*convolution(model.features[0]))
        self.body = nn.Sequential(*body)
        self.to(memory_format=torch.channels_last)
        # Both list their weights from the first layer to the last: convolution, then batch norm, layer by layer.
        with torch.no_grad():
            for ours, theirs in zip(model.parameters(), self.parameters(), strict=True):
                theirs.copy_(ours)

    def forward(self, x: Tensor) -> Tensor:
        """A still image [N, C, H, W] or a sequence [T, N, C, H, W] -> [T, N, num_classes]."""
        self._clear(self)
        if x.dim() == 5:
            return self.body(self.stem(x))
        return self.body(self.stem(x[None]).expand(self.time_steps, -1, -1, -1, -1))


def spikingjelly_vgg(model: nn.Module, detach_reset: bool) -> nn.Module | None:
    """The twin of one of our VGGs, of LIF neurons with tau 2, made of SpikingJelly's multi-step modules; release 2.0
    picks its neurons' backend itself."""
    if not installed("spikingjelly"):
        return None
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    def lif() -> nn.Module:
        surrogate_function = surrogate.ATan(ALPHA)
        return neuron.LIFNode(tau=2.0, detach_reset=detach_reset, surrogate_function=surrogate_function, step_mode="m")

    return _Twin(model, layer.SeqToANNContainer, lif, functional.reset_net)


def snntorch_vgg(model: nn.Module, detach_reset: bool) -> nn.Module | None:
    """The twin of one of our VGGs, of LIF neurons with tau 2, of snnTorch's neurons; everything between them runs over
    all time steps at once."""
    if not installed("snntorch"):
        return None
    return _Twin(model, _Steps, lambda: snntorch_lif(detach_reset), lambda twin: None)


class Peer(NamedTuple):
    """A library to compare with.

    Attributes:
        label: its name.
        package: what is imported.
        vgg: ``vgg(model, detach_reset)``: the twin of a VGG, or None where the package is not installed.
    """

    label: str
    package: str
    vgg: Callable[[nn.Module, bool], nn.Module | None]


PEERS = {
    "spikingjelly": Peer("SpikingJelly", "spikingjelly", spikingjelly_vgg),
    "snntorch": Peer("snnTorch", "snntorch", snntorch_vgg),
}
