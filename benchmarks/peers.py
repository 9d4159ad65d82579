"""The peers, each in its fastest setting on a CPU, and the same equations in plain torch.

A peer that is not installed is None: it is reported as not measured.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

ALPHA = 2.0  # slope of the arctangent surrogate, in all parties


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


class _Spike(torch.autograd.Function):
    """Heaviside step with the derivative of an arctangent."""

    @staticmethod
    def forward(ctx, u: Tensor) -> Tensor:
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (u,) = ctx.saved_tensors
        return grad * (ALPHA / 2) / (1 + (math.pi / 2 * ALPHA * u).square())


def eager_lif(x: Tensor) -> Tensor:
    """LIF, tau 2, threshold 1, hard reset to 0, in plain torch: x [T, N, C, *S] -> spikes, without counts or sums."""
    v = torch.zeros_like(x[0])
    spikes = []
    for t in range(x.shape[0]):
        h = v + (x[t] - v) / 2
        s = _Spike.apply(h - 1)
        v = (1 - s) * h
        spikes.append(s)
    return torch.stack(spikes)


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch.compile for one shape."""
    return torch.compile(function, dynamic=False)


def spikingjelly_lif() -> Callable[[Tensor], Tensor] | None:
    """SpikingJelly's multi-step LIF, its state cleared before each call; release 2.0 picks its backend itself."""
    if not installed("spikingjelly"):
        return None
    from spikingjelly.activation_based import functional, neuron, surrogate

    node = neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(ALPHA), step_mode="m")

    def run(x: Tensor) -> Tensor:
        functional.reset_net(node)
        return node(x)

    return run


def snntorch_lif() -> Callable[[Tensor], Tensor] | None:
    """snnTorch's Leaky with beta 1/2 on half the current: h = v/2 + x/2, which is LIF with tau 2."""
    if not installed("snntorch"):
        return None
    import snntorch

    cell = snntorch.Leaky(
        beta=0.5, threshold=1.0, spike_grad=snntorch.surrogate.atan(ALPHA), reset_mechanism="zero", reset_delay=False
    )

    def run(x: Tensor) -> Tensor:
        v = torch.zeros_like(x[0])
        spikes = []
        for step in x / 2:
            s, v = cell(step, v)
            spikes.append(s)
        return torch.stack(spikes)

    return run


def spikingjelly_vgg(model: nn.Module, detach_reset: bool) -> nn.Module | None:
    """The twin of one of our VGGs: the same layers and parameter values, made of SpikingJelly's multi-step modules.

    Like ours, it computes the first convolution and its batch norm once, presents the result T times, and runs in
    channels_last.
    """
    if not installed("spikingjelly"):
        return None
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    def lif() -> nn.Module:
        surrogate_function = surrogate.ATan(ALPHA)
        return neuron.LIFNode(tau=2.0, detach_reset=detach_reset, surrogate_function=surrogate_function, step_mode="m")

    class Twin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            convolution = {"kernel_size": 3, "padding": 1, "bias": False}
            first, *rest = model.features
            self.stem = nn.Sequential(
                nn.Conv2d(first.conv.in_channels, first.conv.out_channels, **convolution),
                nn.BatchNorm2d(first.conv.out_channels),
            )
            body: list[nn.Module] = [lif()]
            for block in rest:
                body += [
                    layer.Conv2d(block.conv.in_channels, block.conv.out_channels, **convolution, step_mode="m"),
                    layer.BatchNorm2d(block.conv.out_channels, step_mode="m"),
                    lif(),
                ]
                if isinstance(block.pool, nn.MaxPool2d):
                    body.append(layer.MaxPool2d(2, step_mode="m"))
            body.append(layer.Flatten(step_mode="m"))
            for block in model.hidden:
                body += [
                    layer.Linear(block.linear.in_features, block.linear.out_features, bias=False, step_mode="m"),
                    layer.BatchNorm1d(block.linear.out_features, step_mode="m"),
                    lif(),
                ]
            body.append(layer.Linear(model.classifier.in_features, model.classifier.out_features, step_mode="m"))
            self.body = nn.Sequential(*body)

        def forward(self, x: Tensor) -> Tensor:
            functional.reset_net(self)
            current = self.stem(x)
            return self.body(current.expand(model.time_steps, *current.shape))

    twin = Twin().to(memory_format=torch.channels_last)
    # Both list their weights from the first layer to the last: convolution, then batch norm, layer by layer.
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            theirs.copy_(ours)
    return twin
