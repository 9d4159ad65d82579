"""One rank of the distributed pruning test: ``python pruning_ranks.py RANK RANKS FOLDER`` writes what it saw to
FOLDER/RANK.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

import sca
from tests.framework.pruning_nets import ConvNet


def main(rank: int, ranks: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(ConvNet())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    alone, both = dist.new_group([0]), dist.new_group([0, 1])
    refused = ""
    if rank == 1:
        try:
            sca.SCAScheduler(model, optimizer, process_group=alone, start=1, stop=1, interval=1)
        except ValueError as error:
            refused = str(error)
    scheduler = sca.SCAScheduler(
        model,
        optimizer,
        process_group=both,
        start=2,
        stop=8,
        interval=2,
        density=0.5,
        schedule="linear",
        min_channels=2,
        regrow_fraction=0.6,
    )
    torch.manual_seed(rank)  # every rank has its own data
    seen = []
    for _ in range(9):
        x, labels = torch.randn(4, 2, 6, 6), torch.randint(4, (4,))

        def loss(x=x, labels=labels) -> torch.Tensor:
            return nn.functional.cross_entropy(model(x), labels)

        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        if scheduler.wants_probe:
            scheduler.probe(loss)
        before = scheduler.state_dict()
        scheduler.step()
        active = {name: members.group.active.clone() for name, members in scheduler.groups.items()}
        seen.append({"activity": before["activity"], "gradients": before["gradients"], "active": active})
    torch.save({"steps": seen, "refused": refused, "model": model.module.state_dict()}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
