"""Whole runs of `sca train`, and SpikingJelly's epoch to compare with."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

import sca
from sca.bench.peers import spikingjelly_vgg
from sca.bench.work import sgd, training_step
from sca.training import TrainConfig

from .measure import require
from .recordings import NMNIST

CIFAR10 = os.environ.get("SCA_KERNELS_CIFAR10_DIR")
BATCH = 32
# Long runs stay here, and go on where they were stopped.
RUNS = Path(__file__).resolve().parents[1] / "runs"
TWO_HOURS = ("--preset", "two_hours", "--data", "cifar10", "--model", "vgg16")


class Run:
    """A party: one run of `sca train`, whose sample is its median epoch, or its whole duration.

    Args:
        arguments: those of `sca train`.
        whole: the sample is the duration, the table at the end included.
        folder: where the run is kept, so that one which was stopped goes on; its duration is then that of its epochs.

    Attributes:
        details: what the run reached: its log's lines and its summary; set by the call.
    """

    def __init__(self, *arguments: str, whole: bool = False, folder: Path | None = None) -> None:
        self.arguments, self.whole, self.folder = arguments, whole, folder
        self.details: dict[str, Any] = {}

    def __call__(self) -> float:
        with contextlib.ExitStack() as stack:
            folder = self.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            goes_on = folder == self.folder and folder.exists()
            options = ["--resume"] if goes_on else self.arguments  # a run that is there has its arguments
            command = [Path(sys.executable).with_name("sca"), "train", "--out", folder, *options]
            start = time.perf_counter()
            done = subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            seconds = time.perf_counter() - start
            require("backend" not in done.stderr, f"no backend fails or is off: {done.stderr.strip()}")
            rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            summary = json.loads((folder / "summary.json").read_text())
            del summary["cost"]  # of each layer: more than a result needs
        kept = ("epoch", "validation_accuracy", "test_accuracy", "density", "connectivity", "samples_per_second")
        self.details = {
            "arguments": [_portable(argument) for argument in self.arguments],
            "epochs": [{key: row[key] for key in (*kept, "seconds") if key in row} for row in rows],
            "summary": summary,
        }
        ends = [0.0, *(row["seconds"] for row in rows)]
        if self.whole:
            return ends[-1] if self.folder else seconds
        return statistics.median(b - a for a, b in itertools.pairwise(ends))


def _portable(argument: str) -> str:
    """Without the folders of this machine."""
    if argument in (CIFAR10, NMNIST):
        return "DIR"
    return argument.replace(str(RUNS), "runs")


def digits(seed: int) -> Run:
    """`sca train` as a new user runs it."""
    return Run("--seed", str(seed), whole=True)


def nmnist(seed: int) -> Run | None:
    """`sca train` on real recordings of an event camera, its preset; None where there are none."""
    if NMNIST is None:
        return None
    return Run("--data", "nmnist", "--data-dir", NMNIST, "--seed", str(seed), whole=True)


def cifar10(density: float) -> Run | None:
    """Three epochs of VGG-16 on real images, at one density from the second step on; None where there are no images."""
    if CIFAR10 is None:
        return None
    constant = ("--schedule", "constant", "--prune-start", "0", "--prune-interval", "0.2")
    constant += ("--allocation", "layer", "--round-to", "16", "--density", str(density))
    network = ("--model", "vgg16", "--epochs", "3", "--batch-size", str(BATCH), "--reference", "none")
    return Run("--data", "cifar10", "--data-dir", CIFAR10, *network, *(constant if density < 1 else ("--density", "1")))


@functools.cache
def images() -> sca.data.Dataset | None:
    """CIFAR-10, where all of its images are there."""
    data = None if CIFAR10 is None else sca.data.load("cifar10", CIFAR10)
    return data if data is not None and len(data.train) == 50_000 else None


@functools.cache
def dense_reference() -> Path:
    """The folder of a short dense run of ``two_hours``: what SynOps are a share of."""
    run = Run(*TWO_HOURS, "--data-dir", CIFAR10, "--density", "1", "--epochs", "4", folder=RUNS / "two_hours-dense")
    run()
    return run.folder


def two_hours(seed: int) -> Run | None:
    """The preset of that name, beside the dense network; None where images are missing."""
    if images() is None:
        return None
    seeded = ("--seed", str(seed), "--reference", str(dense_reference()))
    return Run(*TWO_HOURS, "--data-dir", CIFAR10, *seeded, whole=True, folder=RUNS / f"two_hours-{seed}")


@functools.cache
def spikingjelly_two_hours() -> float:
    """Seconds of SpikingJelly's dense twin for as many epochs of as many images: its median step, times the steps."""
    config = TrainConfig.from_preset("two_hours", data="cifar10")
    data = images().held_out(config.validation, config.seed)
    steps = spikingjelly_steps(itertools.islice(data.train_batches(config.batch_size, seed=0, epoch=0), 7))
    return statistics.median(steps[2:]) * config.epochs * math.ceil(len(data.train) / config.batch_size)


@functools.cache
def spikingjelly_epoch() -> float:
    """Seconds of SpikingJelly's twin for one epoch on the same images; measured once."""
    return sum(spikingjelly_steps(sca.data.load("cifar10", CIFAR10).train_batches(BATCH, seed=0, epoch=0)))


def spikingjelly_steps(batches: Iterable[tuple[Tensor, Tensor]]) -> list[float]:
    """Seconds of each training step of SpikingJelly's twin of VGG-16, T = 4, its batch's making included."""
    model = sca.models.build("vgg16", num_classes=10, in_channels=3, time_steps=4, detach_reset=True)
    twin = spikingjelly_vgg(model, detach_reset=True)
    optimizer, ends = sgd(twin), [time.perf_counter()]
    for images, labels in batches:
        training_step(twin, images, labels, optimizer)
        ends.append(time.perf_counter())
    return [b - a for a, b in itertools.pairwise(ends)]
