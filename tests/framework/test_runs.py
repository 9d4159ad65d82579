"""Runs that survive (checklist, "Files"): killed anywhere, a full disk, NaN, foreign checkpoints, signals."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from sca import checkpoint, training
from sca.cli import app
from sca.cli.display import Display
from sca.cli.terminal import terminal
from sca.training import Diverged, RunFolder, TrainConfig
from sca.training.loop import Trainer, learning_rate
from tests.framework import doomed_run
from tests.framework.watched import Watch, assert_equal_state

OPTIONS = {
    "model": "vgg5",
    "width": 0.125,
    "time_steps": 2,
    "epochs": 12,
    "batch_size": 32,
    "limit_train": 96,
    "limit_test": 64,
    "checkpoint_minutes": 1e-9,  # one after every step
}
ARGUMENTS = [word for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def config_of(**changes: Any) -> TrainConfig:
    return TrainConfig.from_preset(**{**OPTIONS, "reference": None, **changes})


def new_trainer(**changes: Any) -> Trainer:
    config = config_of(**changes)
    return Trainer.from_config(config, training.load_data(config))


def sca(*arguments: object):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def plain(text: str) -> str:
    return " ".join(text.split())


# --- killed --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def processes() -> Iterator[Any]:
    """Where processes come from that have everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([doomed_run.__name__])
    return context


def start(processes: Any, folder: Path, options: dict[str, str] | None = None, **death: Any) -> multiprocessing.Process:
    begun = (folder / "config.json").exists()
    arguments = ["train", *(["--resume"] if begun else [*ARGUMENTS, "--reference", "none"]), "--out", str(folder)]
    arguments += [word for option in (options or {}).items() for word in option]
    process = processes.Process(target=doomed_run.main, args=(arguments, str(folder)), kwargs=death)
    process.start()
    return process


def test_train_killed_at_20_random_moments_equals_the_uninterrupted_run(tmp_path, processes):
    """Ten times before a file operation of its own (a start has 13, a checkpoint 8), ten times at any instruction."""
    folder, draw = tmp_path / "run", random.Random(3)
    moments = [{"operation": draw.randint(1, 40)} for _ in range(10)]
    moments += [{"seconds": draw.uniform(0.02, 0.15)} for _ in range(10)]
    draw.shuffle(moments)
    for moment in moments:
        process = start(processes, folder, **moment)
        process.join(60)
        assert process.exitcode == (-signal.SIGKILL if "operation" in moment else -signal.SIGPROF), moment
    with RunFolder(folder, "resume") as held:
        assert held.load_checkpoint()["epoch"] > 0
        training.run(config_of(), held, Watch())

    alone = new_trainer()
    alone.fit(Watch(), lambda state: None, lambda row: None)
    assert_equal_state(checkpoint.load(held.checkpoint), alone.state())
    assert_equal_state([json.loads(line) for line in held.log.read_text().splitlines()], alone.history)


def test_train_asked_to_end_by_sigterm_saves_and_exits_130(tmp_path, processes):
    process = start(processes, tmp_path / "run")
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.terminate()
    process.join(60)
    assert process.exitcode == 130
    before = checkpoint.load(tmp_path / "run" / "checkpoint.safetensors")
    new_trainer().load_state(before)


def test_train_asked_for_a_checkpoint_by_sigusr1_goes_on_and_by_sighup_stops(tmp_path, processes):
    folder = tmp_path / "run"
    file = folder / "checkpoint.safetensors"
    long_epochs = {"--checkpoint-minutes": "60", "--limit-train": "1400", "--batch-size": "2", "--epochs": "100"}
    process = start(processes, folder, options=long_epochs)

    def wait_for(file: Path) -> None:
        deadline = time.monotonic() + 120
        while not file.exists():
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.005)

    wait_for(folder / "environment.json")  # from here on it listens
    os.kill(process.pid, signal.SIGUSR1)
    wait_for(file)
    before = checkpoint.load(file)
    assert 0 < before["sums"]["batches"] < before["steps_per_epoch"]  # an epoch's end has one anyway
    assert process.is_alive()
    os.kill(process.pid, signal.SIGHUP)
    process.join(60)
    assert process.exitcode == 130
    after = checkpoint.load(file)
    assert (after["epoch"], after["sums"]["batches"]) > (before["epoch"], before["sums"]["batches"])


def test_display_leaves_a_hangup_alone_that_the_process_was_told_to_ignore():
    held = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Display(terminal(quiet=True)) as display:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGUSR1)
            assert (display.stop_requested, display.checkpoint_requested) == (False, True)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, held)


# --- longer --------------------------------------------------------------------------------------------------------


def resumed(folder: Path, *arguments: object):
    return sca("train", "--resume", "--out", folder, *arguments)


@pytest.mark.parametrize("stopped", [False, True], ids=["finished", "running"])
def test_train_resumed_with_more_epochs_goes_on_by_the_plan_and_the_rates_of_the_longer_run(tmp_path, stopped):
    folder, short, long = tmp_path / "run", config_of(epochs=2), config_of(epochs=5)
    with RunFolder(folder) as held, contextlib.suppress(training.Interrupted):
        training.run(short, held, Watch(stop_after=4) if stopped else Watch())
    before = checkpoint.load(folder / "checkpoint.safetensors")
    assert (folder / "summary.json").exists() is not stopped

    seen: list[float] = []
    with RunFolder(folder, "resume") as held:
        RunFolder.check_resumption(folder, short, long)
        training.run(long, held, Watch(lambda trainer: seen.append(trainer.optimizer.param_groups[0]["lr"])))
    steps = [before["epoch"] * 3 + before["sums"]["batches"] + n for n in range(len(seen))]
    assert seen == [learning_rate(long, step / 3) for step in steps]
    assert len(seen) == 15 - steps[0]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert_equal_state(rows[: len(before["history"])], before["history"])
    assert RunFolder.stored_config(folder) == long
    updates = [json.loads(line)["step"] for line in (folder / "updates.jsonl").read_text().splitlines()]
    plan = Trainer.from_config(long, training.load_data(long)).scheduler.plan
    assert [step for step in updates if step > steps[0]] == [n for n in range(steps[0] + 1, 16) if plan.is_update(n)]
    assert rows[-1]["density"] == pytest.approx(0.5, abs=0.02)
    assert (folder / "summary.json").exists()


def test_train_forgets_the_results_of_a_run_that_goes_on(tmp_path):
    folder = tmp_path / "run"
    with RunFolder(folder) as held:
        training.run(config_of(epochs=1), held, Watch())
        (folder / "report.html").write_text("of one epoch")
    with RunFolder(folder, "resume") as held, pytest.raises(training.Interrupted):
        training.run(config_of(epochs=3), held, Watch(stop_after=4))
    assert not {"model.safetensors", "summary.json", "curves.png", "report.html"} & {f.name for f in folder.iterdir()}
    assert "test accuracy" in plain(sca("eval", folder).output)


def test_train_resume_takes_more_epochs_says_so_and_refuses_fewer(tmp_path):
    folder = tmp_path / "run"
    few = [*ARGUMENTS, "--epochs", "2", "--set", "reference=train", "--checkpoint-minutes", "10"]
    assert sca("train", *few, "--out", folder).exit_code == 0
    fewer = resumed(folder, "--epochs", "1")
    assert fewer.exit_code == 2
    assert f"epochs: expected at least the 2 of the run in {folder}, got 1" in plain(fewer.output)
    other = resumed(folder, "--epochs", "3", "--lr", "0.3")
    assert f"error: lr: the run in {folder} has another value" in plain(other.output)
    longer = resumed(folder, "--epochs", "3")
    assert longer.exit_code == 0, longer.output
    said = (
        "3 epochs, from epoch 3; it was to have 2: learning rate and pruning plan are those of the longer run from here"
    )
    assert plain(longer.output).count(said) == 2  # the dense twin goes on, too
    assert plain(longer.output).count("epoch 3/3") == 2
    assert "epoch 2/3" not in plain(longer.output)
    again = resumed(folder)
    assert again.exit_code == 0
    assert "it was to have" not in plain(again.output)


# --- what it ran on ------------------------------------------------------------------------------------------------


def test_train_stores_what_each_of_its_starts_ran_on(tmp_path, monkeypatch, caplog):
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", "init", "-q"], check=True)
    (project / "script.py").write_text("1")
    subprocess.run(["git", "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    folder = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["sca", "train", "--out", "a b"])
    with RunFolder(folder) as held, pytest.raises(training.Interrupted):
        training.run(config_of(), held, Watch(stop_after=2))
    (project / "script.py").write_text("2")
    with RunFolder(folder, "resume") as held, pytest.raises(training.Interrupted):
        training.run(config_of(), held, Watch(stop_after=4))
    first, second = json.loads((folder / "environment.json").read_text())
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert (first["commit"], first["dirty"], second["dirty"]) == (head, False, True)
    assert first["command"] == "sca train --out 'a b'"
    assert first["versions"].keys() == {"python", "sca_kernels", "torch", "triton", "numpy"}
    assert first["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert (first["threads"], first["processes"], first["gpu"]) == (torch.get_num_threads(), 1, None)
    assert re.fullmatch(r"[a-z0-9-]+-cores", first["processor"])
    assert first["started"] <= second["started"]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (folder / "environment.json").write_text("{")
    with RunFolder(folder, "resume") as held, pytest.raises(training.Interrupted):
        training.run(config_of(), held, Watch(stop_after=6))
    (last,) = json.loads((folder / "environment.json").read_text())
    assert (last["commit"], last["dirty"]) == (None, None)
    assert "environment.json: what earlier starts ran on is lost" in caplog.text


# --- diverged ------------------------------------------------------------------------------------------------------


def test_train_stops_at_a_loss_that_is_not_finite(tmp_path):
    result = sca("train", *ARGUMENTS, "--reference", "none", "--lr", "1e30", "--out", tmp_path / "run")
    assert result.exit_code == 1
    told = plain(result.output)
    assert re.search(r"error: the training diverged: (the loss|a membrane potential) is \w+ at step", told)
    assert "the last good checkpoint is kept in" in told
    assert "Traceback" not in told
    new_trainer(lr=1e30).load_state(checkpoint.load(tmp_path / "run" / "checkpoint.safetensors"))


def test_fit_saves_no_weight_that_is_not_finite(tmp_path):
    """NaN in a hidden layer silences its neurons: the loss stays finite."""

    def poison(trainer: Trainer) -> None:
        if trainer.step == 7:
            with torch.no_grad():
                trainer.model.features[1].conv.weight[0, 0] = math.nan

    trainer, saved = new_trainer(density=1.0), []
    with pytest.raises(Diverged, match=r"features\.1\.conv\.weight is not finite after step 7"):
        trainer.fit(Watch(poison), saved.append, lambda row: None)
    assert [state["sums"]["batches"] + 3 * state["epoch"] for state in saved[-2:]] == [6, 6]


def test_fit_calls_scores_that_are_not_finite_divergence():
    def poison(trainer: Trainer) -> None:
        if trainer.step == 4:
            trainer.scheduler.model.features[1].neuron.activity.membrane_l1[0] = math.nan

    with pytest.raises(Diverged, match=r"group 'conv2': scores are not finite \(step \d+\)"):
        new_trainer().fit(Watch(poison), lambda state: None, lambda row: None)


# --- files ---------------------------------------------------------------------------------------------------------


def test_train_on_a_full_disk_keeps_the_last_good_checkpoint_and_resumes(tmp_path, monkeypatch):
    folder, fsync, left = tmp_path / "run", os.fsync, 20

    def until_full(file: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", until_full)
        result = sca("train", *ARGUMENTS, "--reference", "none", "--out", folder)
    assert result.exit_code == 1
    assert "No space left on device" in result.output
    assert "kept in" in plain(result.output)
    assert f"go on with: sca train --resume --out {folder}" in plain(result.output)
    assert "Traceback" not in result.output
    assert not list(folder.glob("*.partial"))
    new_trainer().load_state(checkpoint.load(folder / "checkpoint.safetensors"))


def test_run_refuses_a_checkpoint_of_another_run_by_name_and_uses_the_one_before(tmp_path, caplog):
    other = new_trainer(width=0.25, seed=5)
    with RunFolder(tmp_path) as folder:
        ours = new_trainer()
        folder.save_checkpoint(ours.state())
        folder.save_checkpoint(other.state())
        assert_equal_state(folder.load_checkpoint(ours.check_state), ours.state())
        assert f"refused {folder.checkpoint}: not a checkpoint of this run" in caplog.text
        assert "width 0.25, not 0.125, seed 5, not 0" in caplog.text
        folder.save_checkpoint({"architecture": {}, "model": {}})
        with pytest.raises(checkpoint.CheckpointError, match=r"checkpoint\.safetensors: .*expected the state of a run"):
            folder.load_checkpoint(ours.check_state)


def test_load_state_refuses_other_models_and_other_data_and_changes_nothing():
    ours = new_trainer()
    before = ours.state()
    with pytest.raises(ValueError, match="model 'vgg9', not 'vgg5'"):
        ours.load_state(new_trainer(model="vgg9").state())
    data = training.load_data(config_of())
    labels = data.train.labels.roll(1)
    relabelled = dataclasses.replace(data, train=dataclasses.replace(data.train, labels=labels))
    with pytest.raises(ValueError, match="data: it is of a run on other images or labels than these of digits"):
        ours.load_state(Trainer.from_config(config_of(), relabelled).state())
    assert_equal_state(ours.state(), before)
    ours.load_state(new_trainer(checkpoint_minutes=5.0).state())


def test_fit_saves_within_an_epoch_when_the_minutes_are_over():
    saved = {}
    for minutes in 1e-9, 10.0:
        saved[minutes] = []
        new_trainer(epochs=2, checkpoint_minutes=minutes).fit(Watch(), saved[minutes].append, lambda row: None)
    assert [(s["epoch"], s["sums"]["batches"]) for s in saved[10.0]] == [(1, 0), (2, 0)]
    assert [(s["epoch"], s["sums"]["batches"]) for s in saved[1e-9]][:5] == [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    assert_equal_state(saved[10.0][-1]["model"], saved[1e-9][-1]["model"])


def test_train_interrupted_after_training_ends_before_the_summary(tmp_path):
    class Impatient(Watch):
        def on_epoch(self, row: dict) -> None:
            self.stop_requested = row["epoch"] == 2

    config = config_of(epochs=2)
    with RunFolder(tmp_path) as folder, pytest.raises(training.Interrupted):
        training.run(config, folder, Impatient())
    assert not folder.summary.exists()
    assert checkpoint.load(folder.checkpoint)["epoch"] == 2


@pytest.mark.gpu
def test_state_holds_the_random_state_of_the_cuda_device():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    trainer = new_trainer(device="cuda")
    state, drawn = trainer.state(), torch.rand(3, device="cuda")
    trainer.load_state(state)
    assert torch.equal(torch.rand(3, device="cuda"), drawn)
