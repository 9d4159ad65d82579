"""A user's network, data and loss for sca.training.Trainer; as a script (``python -m tests.framework.own_training
FOLDER``) one of the processes of a run, as torchrun would start it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import sca
from sca.training import Checkpoints, JSONLog, Ranks, Trainer, joined
from sca.training.learning_rate import cosine
from sca_kernels import nn as snn

SETTINGS = {"density": 0.5, "start": 2, "stop": 12, "interval": 2, "min_channels": 2}


class Own(nn.Module):
    """A network of a user's, which takes sequences [T, N, 1, 8, 8]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.neuron = snn.ChannelConv2d(1, 12, 3, padding=1, bias=False), snn.BatchNormLIF(12)
        self.second, self.second_neuron = snn.ChannelConv2d(12, 8, 3, stride=2, bias=False), snn.BatchNormLIF(8)
        self.config = {"name": "own", "activation": torch.relu}  # which no checkpoint can hold
        self.head = snn.ChannelLinear(8 * 9, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        spikes = self.second_neuron(self.second(self.neuron(self.conv(x))))
        return self.head(spikes.flatten(2))


class Images(Dataset):
    """Sequences that are augmented where they are loaded, from torch's global generator."""

    def __init__(self, samples: int = 45, noise: float = 0.1) -> None:
        self.noise = noise
        generator = torch.Generator().manual_seed(3)
        self.images = torch.rand(samples, 2, 1, 8, 8, generator=generator)
        self.labels = torch.randint(4, (samples,), generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[number] + self.noise * torch.rand(1, 1, 1, 1), self.labels[number]


def together(samples: list[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """[T, N, C, H, W] and [N]."""
    images, labels = zip(*samples, strict=True)
    return torch.stack(images, 1), torch.stack(labels)


def mean_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits.mean(0), labels)


def own_trainer(train: Any = None, test: Any = None, pruned: bool = True, **changes: Any) -> Trainer:
    torch.manual_seed(5)
    model = Own()
    sca.attach_groups(model, torch.rand(2, 2, 1, 8, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = sca.SCAScheduler(model, optimizer, **SETTINGS) if pruned else None
    if train is None:
        train = DataLoader(Images(), batch_size=10, shuffle=True, collate_fn=together)
    options = {"loss": mean_loss, "epochs": 3, "scheduler": scheduler, "lr_schedule": cosine(3), **changes}
    return Trainer(model, optimizer, train, test, **options)


def part(ranks: Ranks, samples: int = 46) -> DataLoader:
    """This process's batches of the same epochs, however many processes there are."""
    sampler = DistributedSampler(Images(samples), num_replicas=ranks.size, rank=ranks.rank, seed=4)
    return DataLoader(Images(samples, noise=0.0), batch_size=10 // ranks.size, collate_fn=together, sampler=sampler)


def train(folder: Path, ranks: Ranks) -> Trainer:
    """Three epochs, with checkpoints and a log in ``folder``."""
    torch.set_num_threads(1)
    test = part(ranks, samples=20)
    trainer = own_trainer(part(ranks), test, callbacks=[Checkpoints(folder), JSONLog(folder)], ranks=ranks)
    trainer.fit()
    return trainer


if __name__ == "__main__":
    with joined("cpu") as ranks:
        train(Path(sys.argv[1]), ranks).leave_ranks()
        ranks.leave()
