"""Runs that survive (checklist, "Files"): killed anywhere, a full disk, NaN, foreign checkpoints, signals."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import multiprocessing
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from sca import checkpoint, training
from sca.cli import app
from sca.training import Diverged, RunFolder, TrainConfig
from sca.training.loop import Trainer
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


def start(processes: Any, folder: Path, **death: Any) -> multiprocessing.Process:
    begun = (folder / "config.json").exists()
    arguments = ["train", *(["--resume"] if begun else [*ARGUMENTS, "--reference", "none"]), "--out", str(folder)]
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
