"""A network, its optimizer and its scheduler, and how they go on, for the scheduler's tests."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

import sca
from tests.framework.pruning_nets import ConvNet, active, loss_of, train_step

SETTINGS = {"start": 2, "stop": 12, "interval": 2, "density": 0.4, "min_channels": 2}


def make(model: nn.Module | None = None, **settings: Any) -> tuple[nn.Module, torch.optim.Optimizer, sca.SCAScheduler]:
    model = model or ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    return model, optimizer, sca.SCAScheduler(model, optimizer, **{**SETTINGS, **settings})


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
