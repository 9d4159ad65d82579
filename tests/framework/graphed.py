"""What the tests of captured steps share: a network of a user's own loop, its optimizers, its batches."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import sca
from sca.training import GraphedStep
from tests.framework.pruning_nets import ConvNet

loss_fn = nn.functional.cross_entropy
RATE = 0.0625  # exact in float32, in which a step has its learning rate


def batches(steps: int, size: int = 5, odd: tuple[int, ...] = ()) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of ConvNet, those of numbers ``odd`` smaller."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        n = size - 2 if step in odd else size
        yield torch.randn(n, 2, 6, 6, generator=generator), torch.randint(4, (n,), generator=generator)


def sgd(parameters, **changes: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, **{"lr": RATE, "momentum": 0.9, "weight_decay": 1e-3, "fused": True, **changes})


def adamw(parameters, **changes: Any) -> torch.optim.AdamW:
    """In the form that can be captured, so that the eager loop has the same bits."""
    return torch.optim.AdamW(parameters, **{"lr": torch.tensor(RATE / 16), "capturable": True, **changes})


OPTIMIZERS = {
    "sgd": functools.partial(sgd, momentum=0.0),
    "momentum": sgd,
    "nesterov": functools.partial(sgd, nesterov=True),
    "adamw": adamw,
}


class Run:
    """A network, its optimizer and its scheduler, from seed 0."""

    def __init__(
        self, optimizer: Callable[..., Any] = sgd, net: Callable[[], nn.Module] = ConvNet, **prune: Any
    ) -> None:
        torch.manual_seed(0)
        self.model = net()
        self.optimizer = optimizer(self.model.parameters())
        self.scheduler = None
        if prune:
            settings = {"density": 0.5, "min_channels": 2, "interval": 6, **prune}
            self.scheduler = sca.SCAScheduler(self.model, self.optimizer, **settings)
        self.losses: list[Tensor] = []

    def step_of(self, **changes: Any) -> GraphedStep:
        return GraphedStep(self.model, self.optimizer, loss_fn, self.scheduler, **changes)

    def eager(self, x: Tensor, labels: Tensor, parts: int = 1) -> None:
        """A step of a user's own loop."""
        self.optimizer.zero_grad()
        total = 0.0
        for images, its in zip(x.tensor_split(parts), labels.tensor_split(parts), strict=True):
            loss = loss_fn(self.model(images), its)
            loss = loss if parts == 1 else loss * (len(its) / len(labels))
            loss.backward()
            total = total + loss.detach()
        self.optimizer.step()
        if self.scheduler is not None:
            if self.scheduler.wants_probe:
                self.scheduler.probe(lambda: loss_fn(self.model(x), labels))
            self.scheduler.step()
        self.losses.append(total)

    def state(self) -> dict[str, Any]:
        """All that training depends on."""
        momenta = [
            {k: v.clone() if isinstance(v, Tensor) else v for k, v in s.items()} for s in self.optimizer.state.values()
        ]
        pruning = None if self.scheduler is None else self.scheduler.state_dict()
        return {
            "losses": self.losses,
            "model": copy.deepcopy(self.model.state_dict()),
            "optimizer": momenta,
            "scheduler": pruning,
            "gradients": [p.grad for p in self.model.parameters()],
        }


def train(run: Run, step: GraphedStep, given: Iterator[tuple[Tensor, Tensor]]) -> None:
    run.losses += [step(x, labels) for x, labels in given]


class Reading(ConvNet):
    """Reads a value in its forward pass."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if float(y.detach().sum()) < 1e30 else -y
