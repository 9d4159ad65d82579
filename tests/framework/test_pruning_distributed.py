"""SCAScheduler on two ranks over gloo (checklist, "Distributed": sums, same masks on every rank after every update)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sca
from tests.framework.pruning_nets import ConvNet, loss_of, train_step

ROOT = Path(__file__).parents[2]
KINDS = ("spike_count", "membrane_l1", "positions")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks saw."""
    if not torch.distributed.is_available():
        pytest.skip("torch without distributed")
    folder = tmp_path_factory.mktemp("ranks")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.framework.pruning_ranks"]
    running = [
        subprocess.Popen(
            [*command, str(rank), "2", str(folder)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in running:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def kept_of(saw: dict[str, Any]) -> torch.Tensor:
    """The active channels of both groups, in one row."""
    return torch.cat([saw["active"]["first"], saw["active"]["second"] + 6])


def best_by_activity(saw: list[dict[str, Any]], channels: int) -> torch.Tensor:
    """So many channels of both groups, in one row, by the activity that these ranks counted."""
    score = []
    for norm in "norm1", "norm2":
        sums = {kind: sum(each["activity"][norm][kind] for each in saw) for kind in KINDS}
        score.append((sums["spike_count"] + sums["membrane_l1"]) / sums["positions"])
    return torch.cat(score).argsort(descending=True, stable=True)[:channels].sort().values


def test_scheduler_refuses_a_process_group_that_its_process_is_not_in(ranks: list[dict[str, Any]]) -> None:
    assert ranks[1]["refused"] == "process_group: expected a group that this process is in"


def test_scheduler_decides_alike_on_every_rank_though_their_data_differ(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks
    assert not torch.equal(
        first["steps"][1]["activity"]["norm1"]["spike_count"], second["steps"][1]["activity"]["norm1"]["spike_count"]
    )
    for ours, theirs in zip(first["steps"], second["steps"], strict=True):
        for name, active in ours["active"].items():
            assert torch.equal(active, theirs["active"][name])
    assert sum(active.numel() for active in first["steps"][-1]["active"].values()) == 7
    trained = [name for name in first["model"] if not name.endswith(("running_mean", "running_var"))]
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in trained)


def test_scheduler_ranks_channels_by_activity_summed_over_ranks(ranks: list[dict[str, Any]]) -> None:
    update = [rank["steps"][3] for rank in ranks]  # the update at step 4 is the first that cuts, from all channels
    kept = kept_of(update[0])
    assert torch.equal(kept, best_by_activity(update, kept.numel()))
    assert kept.numel() < 14


def test_scheduler_of_a_process_group_counts_and_compares_the_ranks_of_that_group_alone(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        assert torch.equal(kept_of(rank["by_itself"]), best_by_activity([rank["by_itself"]], 7))
    assert not torch.equal(*(kept_of(rank["by_itself"]) for rank in ranks))


def test_what_a_criterion_observes_is_summed_over_ranks(ranks: list[dict[str, Any]]) -> None:
    for name in "first", "second":
        counts = [rank["observing"]["observed"][f"count@{name}"] for rank in ranks]
        assert not torch.equal(*counts)
        for rank in ranks:
            assert torch.equal(rank["observing"]["scores"][name], sum(counts).float())


def test_probe_gradients_of_the_ranks_differ_before_they_are_summed(ranks: list[dict[str, Any]]) -> None:
    gradients = [rank["steps"][5]["gradients"]["norm1"] for rank in ranks]
    assert not torch.equal(*gradients)


# --- parameters that several ranks share out


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """torch.distributed with this process alone."""
    if not torch.distributed.is_available():
        pytest.skip("torch without distributed")
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def shard(model: nn.Module) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (1,)))


def flatten(model: nn.Module, use_orig_params: bool) -> nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, use_orig_params=use_orig_params, device_id=torch.device("cpu"))


SHARDED = {
    "fsdp2": (shard, "conv1.weight, a DTensor"),
    "fsdp1": (lambda model: flatten(model, True), "conv1.weight in a FullyShardedDataParallel"),
    "fsdp1_flat": (lambda model: flatten(model, False), "_flat_param in a FullyShardedDataParallel"),
}


@pytest.mark.filterwarnings("ignore:.*(FSDP|FullyShardedDataParallel)")
@pytest.mark.parametrize("kind", SHARDED)
def test_scheduler_refuses_sharded_parameters_by_name(one_rank: None, kind: str) -> None:
    wrap, named = SHARDED[kind]
    model = wrap(ConvNet())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with pytest.raises(TypeError, match=f"model: expected ordinary parameters, got .*{named}"):
        sca.SCAScheduler(model, optimizer, start=1, stop=2, interval=1)
    train_step(model, optimizer)  # without a scheduler they train


def test_scheduler_notices_parameters_that_were_sharded_after_it_was_made(one_rank: None) -> None:
    model = ConvNet()
    scheduler = sca.SCAScheduler(model, torch.optim.SGD(model.parameters(), lr=0.05), start=1, stop=2, interval=1)
    shard(model)
    with pytest.raises(ValueError, match=r"conv1\.weight is another parameter than when this scheduler was made"):
        scheduler.step()


def test_scheduler_takes_an_optimizer_that_shares_out_its_state(one_rank: None) -> None:
    """ZeroRedundancyOptimizer steps another one inside, on the parameters of its rank."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    torch.manual_seed(0)
    model = nn.parallel.DistributedDataParallel(ConvNet())
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1)
    scheduler = sca.SCAScheduler(
        model, optimizer, start=1, stop=4, interval=1, density=0.5, min_channels=2, schedule="constant"
    )
    for _ in range(5):
        before = {name: p.detach().clone() for name, p in model.module.named_parameters()}
        train_step(model, optimizer)
        for norm in model.module.norm1, model.module.norm2:
            dormant = norm.group.dormant
            assert torch.equal(norm.bias[dormant], before[f"norm{1 + (norm is model.module.norm2)}.bias"][dormant])
        if scheduler.wants_probe:
            scheduler.probe(lambda: loss_of(model))
        scheduler.step()
    assert scheduler.density == 0.5
