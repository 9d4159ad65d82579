"""Networks as snnTorch's tutorials write them, of its own neurons."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .net import ForeignNet, events, normal, seeded, stateless


def utilities_reset(model: nn.Module) -> None:
    """Reset all neurons of these classes that were constructed in this process, so no copy, if ``model`` has one of
    them as a child."""
    from snntorch import utils

    utils.reset(model)


class Recorded(nn.Module):
    """Tutorial 5: an image [N, 784] at each of T steps; spikes and membranes [T, N, 10] of the last layer."""

    def __init__(self, steps: int = 12, hidden: int = 40) -> None:
        import snntorch

        super().__init__()
        self.steps = steps
        self.fc1 = nn.Linear(784, hidden)
        self.lif1 = snntorch.Leaky(beta=0.95)
        self.fc2 = nn.Linear(hidden, 10)
        self.lif2 = snntorch.Leaky(beta=0.95)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spikes, membranes = [], []
        for _ in range(self.steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        return torch.stack(spikes), torch.stack(membranes)


def _recorded() -> nn.Module:
    with seeded(31):
        model = Recorded()
    with torch.no_grad():
        model.fc1.bias.add_(0.2)
        model.fc2.weight.mul_(2)
        model.fc2.bias.add_(0.1)
    return model.train()


def _hidden_states() -> nn.Module:
    import snntorch
    from snntorch import surrogate

    spike_grad = surrogate.fast_sigmoid(slope=25)
    with seeded(32):
        model = nn.Sequential(
            nn.Conv2d(1, 4, 5),
            nn.MaxPool2d(2),
            snntorch.Leaky(beta=0.5, spike_grad=spike_grad, init_hidden=True),
            nn.Conv2d(4, 8, 5),
            nn.MaxPool2d(2),
            snntorch.Leaky(beta=0.5, spike_grad=spike_grad, init_hidden=True),
            nn.Flatten(),
            nn.Linear(8 * 4 * 4, 10),
            snntorch.Leaky(beta=0.5, spike_grad=spike_grad, init_hidden=True, output=True),
        )
    with torch.no_grad():
        for module, factor, grid in ((model[0], 2.0, 8), (model[3], 1.5, 8), (model[7], 4.0, 2)):
            for parameter in module.parameters():
                parameter.mul_(factor * grid).round_().div_(grid)  # with beta 1/2, membranes meet the threshold
    return model.train()


def _quantised() -> Tensor:
    return (normal(6, 3, 1, 28, 28, seed=33) * 2).round() / 4


def through_hidden_states(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The training script's loop, between two resets."""
    spikes, membranes = zip(*(model(step) for step in x), strict=True)
    return torch.stack(spikes), torch.stack(membranes)


class Looped(nn.Module):
    """[T, N, 2, 20, 20] -> spikes [T, N, 10], step by step; hidden neurons reset to zero."""

    def __init__(self) -> None:
        import snntorch
        from snntorch import surrogate

        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1)
        self.lif1 = snntorch.Leaky(beta=0.9, spike_grad=surrogate.atan(), reset_mechanism="zero")
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.lif2 = snntorch.Leaky(beta=0.8, threshold=0.7, spike_grad=surrogate.atan(), reset_mechanism="zero")
        self.fc = nn.Linear(8 * 25, 10)
        self.lif3 = snntorch.Leaky(beta=0.7, spike_grad=surrogate.sigmoid(slope=5), reset_delay=False)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        spikes = []
        for step in range(x.shape[0]):
            spk1, mem1 = self.lif1(nn.functional.max_pool2d(self.conv1(x[step]), 2), mem1)
            spk2, mem2 = self.lif2(nn.functional.avg_pool2d(self.conv2(spk1), 2), mem2)
            spk3, mem3 = self.lif3(self.fc(spk2.flatten(1)), mem3)
            spikes.append(spk3)
        return torch.stack(spikes)


def _recording() -> Tensor:
    return events(7, 3, 2, 20, 20, seed=34)


def _looped() -> nn.Module:
    with seeded(35):
        model = Looped()
    with torch.no_grad():
        for module, factor in ((model.conv1, 1.5), (model.conv2, 3.0), (model.fc, 3.0)):
            module.weight.mul_(factor)
    return model.train()


class Filtered(nn.Module):
    """[T, N, 30] -> spikes [T, N, 10] of neurons with a synaptic current, which is a second state."""

    def __init__(self) -> None:
        import snntorch

        super().__init__()
        self.fc1 = nn.Linear(30, 24)
        self.syn1 = snntorch.Synaptic(alpha=0.8, beta=0.9)
        self.fc2 = nn.Linear(24, 10)
        self.syn2 = snntorch.Synaptic(alpha=0.7, beta=0.8, reset_mechanism="zero")

    def forward(self, x: Tensor) -> Tensor:
        syn1, mem1 = self.syn1.init_synaptic()
        syn2, mem2 = self.syn2.init_synaptic()
        spikes = []
        for step in range(x.shape[0]):
            spk1, syn1, mem1 = self.syn1(self.fc1(x[step]), syn1, mem1)
            spk2, syn2, mem2 = self.syn2(self.fc2(spk1), syn2, mem2)
            spikes.append(spk2)
        return torch.stack(spikes)


def _currents() -> Tensor:
    return normal(9, 4, 30, seed=36)


def _filtered() -> nn.Module:
    with seeded(37):
        model = Filtered()
    return model.train()


NETS = (
    ForeignNet(
        name="snntorch_tutorial5",
        origin="snntorch",
        build=_recorded,
        example=lambda: normal(4, 784, seed=38).abs() / 2,
        call=lambda model, x: model(x),
        reset=stateless,
        trap="the reset subtracts the threshold one step later, behind the decay, so another amount than a soft reset "
        "does; states are passed through the loop; the loss is taken of the last layer's membranes",
        convertible=("lif1",),
        either=("lif2",),
        layers=("fc1", "fc2"),
        time="N>loop",
        package="snntorch",
    ),
    ForeignNet(
        name="snntorch_tutorial6",
        origin="snntorch",
        build=_hidden_states,
        example=_quantised,
        call=through_hidden_states,
        reset=utilities_reset,
        trap="hidden states, which utils.reset clears in every network of the process, but not in a copy; the last "
        "neuron returns spikes and membrane; fast_sigmoid(25) is 1 / (1 + 25 |u|)^2; membranes meet the threshold "
        "exactly and do not fire",
        convertible=("2", "5"),
        either=("8",),
        layers=("0", "3", "7"),
        time="single",
        package="snntorch",
    ),
    ForeignNet(
        name="snntorch_conv_loop",
        origin="snntorch",
        build=_looped,
        example=_recording,
        call=lambda model, x: model(x),
        reset=stateless,
        trap="a loop over range(T) in forward, pools as functions; reset to zero one step later; the last neuron "
        "resets at once, undetached, and by the spike less that of a step before",
        convertible=("lif1", "lif2"),
        either=("lif3",),
        layers=("conv1", "conv2", "fc"),
        time="TN>loop",
        package="snntorch",
    ),
    ForeignNet(
        name="snntorch_synaptic",
        origin="snntorch",
        build=_filtered,
        example=_currents,
        call=lambda model, x: model(x),
        reset=stateless,
        trap="two states per neuron; the default is a delayed subtraction; reset to zero wipes the input of the step "
        "behind a spike as well, so it is no hard reset: refused",
        convertible=("syn1",),
        refused=("syn2",),
        layers=("fc1", "fc2"),
        time="TN>loop",
        package="snntorch",
    ),
)
