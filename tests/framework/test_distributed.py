"""sca train by several processes over gloo (checklist, "Distributed"): the run of one, whatever happens to it."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sca import checkpoint, training
from sca.pruning.ranks import RanksDiffer, require_same_masks
from sca.training import Ranks, RunFolder, TrainConfig
from tests.framework import doomed_run, own_training
from tests.framework.watched import Watch

if not torch.distributed.is_available():
    pytest.skip("torch without distributed", allow_module_level=True)

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "model": "vgg5",
    "width": 0.125,
    "time_steps": 2,
    "epochs": 6,
    "batch_size": 32,
    "limit_train": 99,  # the last batch: 2 images for one process and 1 for the other
    "limit_test": 300,
    "checkpoint_minutes": 1e-9,
}
ARGUMENTS = [word for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
# float32 sums in another order: measured 7e-7 of a tensor's largest entry after these 24 steps
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The folder of the same run by one process."""
    path = tmp_path_factory.mktemp("alone")
    config = TrainConfig.from_preset(**OPTIONS, reference=None)
    with RunFolder(path) as folder:
        training.run(config, folder, Watch())
    return path


class Pair:
    """Two processes that train in ``folder``, as torchrun would start them."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([doomed_run.__name__])
        self.folder = folder
        self.outputs = [folder.parent / f"rank{rank}.txt" for rank in range(2)]
        self.processes = []
        for rank, output in enumerate(self.outputs):
            output.write_text("")
            numbers = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": 2,
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": port,
            }
            environment = {name: str(value) for name, value in numbers.items()}
            given = (["train", *arguments, "--out", str(folder)], str(folder))
            told = {"environment": environment, "output": str(output)}
            self.processes.append(context.Process(target=doomed_run.main, args=given, kwargs=told))
        for process in self.processes:
            process.start()

    def wait_for_a_new_checkpoint(self) -> None:
        file, deadline = self.folder / "checkpoint.safetensors", time.time() + 60
        before = file.stat().st_mtime_ns if file.exists() else None
        while time.time() < deadline:
            if file.exists() and file.stat().st_mtime_ns != before:
                return
            time.sleep(0.005)
        raise TimeoutError(self.output(0) + self.output(1))

    def wait_for(self, file: Path) -> None:
        deadline = time.time() + 120
        while not file.exists():
            if time.time() > deadline or not all(process.is_alive() for process in self.processes):
                raise TimeoutError(self.output(0) + self.output(1))
            time.sleep(0.005)

    def end(self) -> list[int | None]:
        """Exit codes; a process that hangs has none."""
        for process in self.processes:
            process.join(60)
        codes = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        return codes

    def output(self, rank: int) -> str:
        return " ".join(self.outputs[rank].read_text().split())


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(ours: Path, theirs: Path) -> None:
    """The same structure after each epoch and at the end; weights and figures within rounding."""
    a, b = (checkpoint.load(folder / "checkpoint.safetensors") for folder in (ours, theirs))
    for name, active in b["active"].items():
        assert torch.equal(a["active"][name], active), name
    for name, value in b["model"].items():
        assert (a["model"][name] - value).abs().max() <= TOLERANCE * value.abs().max(), name
    for x, y in zip(log_of(ours), log_of(theirs), strict=True):
        for key in ("epoch", "step", "active", "density", "connectivity"):
            assert x[key] == y[key], key
        for key in ("loss", "train_accuracy", "firing_rate"):
            assert x[key] == pytest.approx(y[key], rel=1e-4), key
        assert x["test_accuracy"] == pytest.approx(y["test_accuracy"], abs=0.01)


def test_train_by_two_processes_is_the_run_of_one(tmp_path, alone):
    pair = Pair(tmp_path / "run", *ARGUMENTS, "--reference", "none")
    assert pair.end() == [0, 0], pair.output(0) + pair.output(1)
    assert_same_run(tmp_path / "run", alone)
    assert log_of(alone)[-1]["density"] == pytest.approx(0.5, abs=0.02)
    assert pair.output(0).count("epoch 6/6") == 1
    assert "compacted" in pair.output(0)
    assert pair.output(1) == ""


def test_train_goes_on_after_a_signal_and_a_killed_process_with_any_number_of_them(tmp_path, alone):
    folder = tmp_path / "run"
    pair = Pair(folder, *ARGUMENTS, "--reference", "none")
    pair.wait_for_a_new_checkpoint()
    pair.processes[1].terminate()  # one is asked, both stop after the same step
    assert pair.end() == [130, 130], pair.output(0) + pair.output(1)
    assert "go on with: sca train --resume --out" in pair.output(0)
    assert pair.output(1) == ""

    pair = Pair(folder, "--resume")
    pair.wait_for_a_new_checkpoint()
    pair.processes[1].kill()
    assert pair.end() == [1, -signal.SIGKILL], pair.output(0) + pair.output(1)
    assert "rank 0: error: another process of this run has ended" in pair.output(0)
    assert "the last good checkpoint is kept in" in pair.output(0)
    assert "Traceback" not in pair.output(0)

    config = RunFolder.stored_config(folder)
    with RunFolder(folder, "resume") as held:
        assert held.load_checkpoint()["epoch"] < 6
        training.run(config, held, Watch())
    assert_same_run(folder, alone)


def test_train_by_two_processes_writes_a_checkpoint_when_either_is_asked_for_one_and_goes_on(tmp_path):
    folder = tmp_path / "run"
    long_epochs = ("--limit-train", "1400", "--batch-size", "2", "--epochs", "100", "--checkpoint-minutes", "60")
    pair = Pair(folder, *ARGUMENTS, "--reference", "none", *long_epochs)
    pair.wait_for(folder / "environment.json")  # from here on both listen
    os.kill(pair.processes[1].pid, signal.SIGUSR1)
    pair.wait_for(folder / "checkpoint.safetensors")
    state = checkpoint.load(folder / "checkpoint.safetensors")
    assert 0 < state["sums"]["batches"] < state["steps_per_epoch"]  # an epoch's end has one anyway
    assert all(process.is_alive() for process in pair.processes)
    os.kill(pair.processes[1].pid, signal.SIGHUP)
    assert pair.end() == [130, 130], pair.output(0) + pair.output(1)


def test_trainer_of_two_processes_on_parts_of_a_dataloader_is_the_run_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    numbers = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    command = [sys.executable, "-m", "tests.framework.own_training", str(tmp_path / "both")]
    processes = []
    try:
        for rank in "01":
            environment = {**os.environ, **numbers, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": paths}
            processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:  # one that waits for another would outlive the test
        for process in processes:
            process.kill()
    own_training.train(tmp_path / "one", Ranks())
    assert_same_run(tmp_path / "both", tmp_path / "one")
    assert log_of(tmp_path / "both")[-1]["density"] < 0.6


def test_train_by_two_processes_in_the_folder_of_a_run_ends_both(tmp_path, alone):
    pair = Pair(alone, *ARGUMENTS)
    assert pair.end() == [2, 1]
    assert "already holds a run" in pair.output(0)


def test_ranks_refuse_a_batch_that_they_cannot_share():
    with pytest.raises(ValueError, match="batch_size: expected a multiple of the 3 processes, got 64"):
        Ranks(0, 3).check_batches(64, 1000)
    with pytest.raises(ValueError, match=r"each of the 4 processes in an epoch's last batch, got 2 \(130 images"):
        Ranks(0, 4).check_batches(64, 130)
    Ranks(0, 4).check_batches(64, 132)
    Ranks().check_batches(64, 65)


def test_ranks_share_every_image_once():
    images, labels = torch.arange(7), torch.arange(7) + 10
    parts = [Ranks(rank, 3).share(images, labels) for rank in range(3)]
    assert torch.cat([part[0] for part in parts]).tolist() == images.tolist()
    assert torch.cat([part[1] for part in parts]).tolist() == labels.tolist()
    assert sum(weight * part.double().mean() for part, _, weight in parts) / 3 == pytest.approx(images.double().mean())


def test_require_same_masks_names_the_rank_that_differs(monkeypatch):
    def gather(gathered: list[torch.Tensor], own: torch.Tensor, group: object) -> None:
        for rank, digest in enumerate(gathered):
            digest.copy_(own + (rank == 1))

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 3)
    monkeypatch.setattr(torch.distributed, "all_gather", gather)
    with pytest.raises(RanksDiffer, match="rank 1 chose other channels than rank 0"):
        require_same_masks({"conv1": torch.tensor([True, False])}, torch.device("cpu"))


def test_python_m_sca_is_the_command():
    done = subprocess.run([sys.executable, "-m", "sca", "--help"], capture_output=True, text=True, check=True)
    assert "train" in done.stdout
