"""A network, its optimizer and its scheduler, and how they go on, for the scheduler's tests."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import sca
from sca.pruning.criteria import Criterion, GroupContext, Observation
from tests.framework import pruning_nets
from tests.framework.pruning_nets import ConvNet, active, loss_of, train_step

SETTINGS = {"start": 2, "stop": 12, "interval": 2, "density": 0.4, "min_channels": 2}


def make(model: nn.Module | None = None, **settings: Any) -> tuple[nn.Module, torch.optim.Optimizer, sca.SCAScheduler]:
    model = ConvNet() if model is None else model  # a compiled one has no truth value
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    return model, optimizer, sca.SCAScheduler(model, optimizer, **{**SETTINGS, **settings})


def make_short(
    net: Callable[[], nn.Module] = ConvNet, **settings: Any
) -> tuple[nn.Module, torch.optim.Optimizer, sca.SCAScheduler]:
    """The same from seed 0, pruned at each of four steps."""
    torch.manual_seed(0)
    return make(net(), **{**pruning_nets.SETTINGS, **settings})


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: sca.SCAScheduler, steps: int = 1) -> list:
    """Train; returns the events."""
    events = []
    for _ in range(steps):
        train_step(model, optimizer)
        if scheduler.wants_probe:
            scheduler.probe(lambda: loss_of(model))
        event = scheduler.step()
        if event is not None:
            events.append(event)
    return events


def everything(model: nn.Module, scheduler: sca.SCAScheduler) -> dict[str, Any]:
    """All that a probe must leave as it was."""
    return copy.deepcopy(
        {
            "state": model.state_dict(),
            "grad": {name: p.grad for name, p in model.named_parameters()},
            "activity": scheduler.state_dict()["activity"],
            "random": torch.get_rng_state(),
            "training": [m.training for m in model.modules()],
            "active": active(model),
        }
    )


def cut(model: ConvNet) -> ConvNet:
    """A fixed structure with dormant channels."""
    model.norm1.group.set_active([0, 2, 3])
    model.norm2.group.set_active([1, 4, 5, 7])
    return model


class Spy(Criterion):
    """Keeps what it is shown; ranks by spikes."""

    name = "spy"
    observes = "spikes"

    def __init__(self, observes: str = "spikes", steps: int = 1) -> None:
        self.observes, self.observed_steps = observes, steps
        self.seen: list[Observation] = []

    def observe(self, seen: Observation) -> dict[str, Tensor]:
        self.seen.append(seen)
        return {"count": seen.spikes.sum([0, 1, *range(3, seen.spikes.dim())]).long()}

    def __call__(self, group: GroupContext) -> Tensor:
        return group.spread(group.observed["count"])
