"""One rank of the distributed pruning test: ``python pruning_ranks.py RANK RANKS FOLDER`` writes what it saw to
FOLDER/RANK.pt.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import sca
from sca.structure.groups import find_groups
from tests.framework.pruning_nets import ConvNet
from tests.framework.scheduled import Spy


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
    seen = [step(model, optimizer, scheduler) for _ in range(9)]
    trained = copy.deepcopy(model.module.state_dict())
    own = [dist.new_group([each]) for each in range(ranks)][rank]  # which every rank makes, in one order
    scheduler.detach()
    observing = update_once(model, optimizer, process_group=both, criterion=Spy())
    by_itself = update_once(model, optimizer, process_group=own)
    saw = {"steps": seen, "refused": refused, "model": trained, "observing": observing, "by_itself": by_itself}
    torch.save(saw, folder / f"{rank}.pt")
    dist.destroy_process_group()


def step(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: sca.SCAScheduler) -> dict[str, Any]:
    """One, on new data; what was measured before its update, and the channels after it."""
    x, labels = torch.randn(4, 2, 6, 6), torch.randint(4, (4,))

    def loss() -> Tensor:
        return nn.functional.cross_entropy(model(x), labels)

    optimizer.zero_grad()
    loss().backward()
    optimizer.step()
    if scheduler.wants_probe:
        scheduler.probe(loss)
    before = scheduler.state_dict()
    scheduler.step()
    active = {name: members.group.active.clone() for name, members in scheduler.groups.items()}
    return {**{part: before[part] for part in ("activity", "gradients", "observed")}, "active": active}


def update_once(model: nn.Module, optimizer: torch.optim.Optimizer, **settings: Any) -> dict[str, Any]:
    """The only step of a scheduler of its own, which cuts from all channels; with the scores that it cut by."""
    for members in find_groups(model.module).values():
        members.group.set_active(range(members.group.num_channels))
    settings = {"density": 0.5, "schedule": "constant", "min_channels": 2, "regrow_fraction": 0, **settings}
    scheduler = sca.SCAScheduler(model, optimizer, start=1, stop=1, interval=1, **settings)
    saw = step(model, optimizer, scheduler)
    scheduler.detach()
    scores = {name: change["all_scores"] for name, change in scheduler.history[0]["groups"].items()}
    return {**saw, "scores": {name: torch.tensor(sca.packed.unpack(packed)) for name, packed in scores.items()}}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
