"""Whole runs of `sca train`, and SpikingJelly's epoch to compare with."""

from __future__ import annotations

import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sca
from sca.bench.peers import spikingjelly_vgg
from sca.bench.work import sgd, training_step

from .measure import require
from .recordings import NMNIST

CIFAR10 = os.environ.get("SCA_KERNELS_CIFAR10_DIR")
BATCH = 32


class Run:
    """A party: one run of `sca train`, whose sample is its median epoch, or its whole duration.

    Attributes:
        details: what the run reached: its log's lines and its summary; set by the call.
    """

    def __init__(self, *arguments: str, whole: bool = False) -> None:
        self.arguments, self.whole = arguments, whole
        self.details: dict[str, Any] = {}

    def __call__(self) -> float:
        with tempfile.TemporaryDirectory() as folder:
            command = [Path(sys.executable).with_name("sca"), "train", *self.arguments, "--out", folder]
            start = time.perf_counter()
            done = subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            seconds = time.perf_counter() - start
            require("backend" not in done.stderr, f"no backend fails or is off: {done.stderr.strip()}")
            rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
            summary = json.loads((Path(folder) / "summary.json").read_text())
            del summary["cost"]  # of each layer: more than a result needs
        kept = ("epoch", "test_accuracy", "density", "connectivity", "samples_per_second", "seconds")
        self.details = {
            "arguments": ["DIR" if argument in (CIFAR10, NMNIST) else argument for argument in self.arguments],
            "epochs": [{key: row[key] for key in kept} for row in rows],
            "summary": summary,
        }
        ends = [0.0, *(row["seconds"] for row in rows)]
        return seconds if self.whole else statistics.median(b - a for a, b in itertools.pairwise(ends))


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
def spikingjelly_epoch() -> float:
    """Seconds of SpikingJelly's twin for one epoch on the same images; measured once."""
    data = sca.data.load("cifar10", CIFAR10)
    model = sca.models.build("vgg16", num_classes=10, in_channels=3, time_steps=4, detach_reset=True)
    twin = spikingjelly_vgg(model, detach_reset=True)
    optimizer = sgd(twin)
    start = time.perf_counter()
    for images, labels in data.train_batches(BATCH, seed=0, epoch=0):
        training_step(twin, images, labels, optimizer)
    return time.perf_counter() - start
