"""Networks of norse's cells, whose state is passed in and out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .net import ForeignNet, events, normal, seeded, stateless


def _box(**named: float):
    from norse.torch.functional.lif_box import LIFBoxParameters

    return LIFBoxParameters(**{name: torch.as_tensor(value) for name, value in named.items()})


def _sequential() -> nn.Module:
    import norse.torch as norse

    with seeded(41):
        model = norse.SequentialState(
            nn.Conv2d(2, 6, 3, padding=1),
            norse.LIFBoxCell(_box(tau_mem_inv=200.0), dt=2e-3),  # a rate of 0.4, in two factors
            nn.AvgPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1),
            norse.LIFBoxCell(_box(tau_mem_inv=250.0, v_leak=0.2, v_reset=-0.1)),
            nn.Flatten(),
            nn.Linear(8 * 36, 20),
            norse.LIFCell(),
            nn.Linear(20, 10),
        )
    with torch.no_grad():
        for index, factor in ((0, 10.0), (3, 16.0), (6, 16.0)):
            model[index].weight.mul_(factor)
    return model.train()


def _recording() -> Tensor:
    return events(8, 3, 2, 12, 12, seed=42)


def with_state(model: nn.Module, x: Tensor) -> Tensor:
    """The training script's loop, through which the state is passed."""
    state, outputs = None, []
    for step in x:
        output, state = model(step, state)
        outputs.append(output)
    return torch.stack(outputs)


class MultiStep(nn.Module):
    """[T, N, 30] -> [T, N, 10]; the neuron takes the whole sequence and returns (spikes, state)."""

    def __init__(self) -> None:
        import norse.torch as norse

        super().__init__()
        self.fc = nn.Linear(30, 24)
        self.lif = norse.LIF()
        self.readout = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        spikes, _ = self.lif(self.fc(x))
        return self.readout(spikes)


def _multi_step() -> nn.Module:
    with seeded(43):
        model = MultiStep()
    with torch.no_grad():
        model.fc.weight.mul_(5)
    return model.train()


NETS = (
    ForeignNet(
        name="norse_sequential",
        origin="norse",
        build=_sequential,
        example=_recording,
        call=with_state,
        reset=stateless,
        trap="the state goes through the container, as a list that is written to; SuperSpike ignores its alpha of 100; "
        "dt and tau_mem_inv make the rate together; the second cell leaks to another potential than it resets to, "
        "and starts there; the last has a synaptic current; they fire at >",
        convertible=("1", "7"),
        either=("4",),
        layers=("0", "3", "6", "8"),
        time="single",
        package="norse",
    ),
    ForeignNet(
        name="norse_multi_step",
        origin="norse",
        build=_multi_step,
        example=lambda: normal(10, 4, 30, seed=44),
        call=lambda model, x: model(x),
        reset=stateless,
        trap="a neuron over all steps, that returns spikes and state; SuperSpike ignores its alpha of 100",
        convertible=("lif",),
        layers=("fc", "readout"),
        time="TN",
        package="norse",
    ),
)
