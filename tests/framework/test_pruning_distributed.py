"""SCAScheduler on two ranks over gloo (checklist, "Distributed": sums, same masks on every rank after every update)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

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
    step = 3  # the update at step 4 is the first that cuts, from all channels
    score = []
    for norm in "norm1", "norm2":
        sums = {kind: sum(rank["steps"][step]["activity"][norm][kind] for rank in ranks) for kind in KINDS}
        score.append((sums["spike_count"] + sums["membrane_l1"]) / sums["positions"])
    order = torch.cat(score).argsort(descending=True, stable=True)
    kept = sum(active.numel() for active in ranks[0]["steps"][step]["active"].values())
    expected = order[:kept].sort().values
    active = ranks[0]["steps"][step]["active"]
    assert torch.equal(torch.cat([active["first"], active["second"] + 6]), expected)
    assert kept < 14


def test_probe_gradients_of_the_ranks_differ_before_they_are_summed(ranks: list[dict[str, Any]]) -> None:
    gradients = [rank["steps"][5]["gradients"]["norm1"] for rank in ranks]
    assert not torch.equal(*gradients)
