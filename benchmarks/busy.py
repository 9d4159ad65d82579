"""Training steps in a process of their own, on two cores, alone or beside a process that never waits.

How OpenMP's threads wait is a matter of the whole process, so each way needs one. `python -m benchmarks.busy
ours|default`: read seconds of steps that don't count and a number of those that do, a line each time, and print how
many milliseconds one took.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

CORES = 2
STEPS = 10
NOTICED, FORGOTTEN = 1.0, 4.0  # seconds after which a busy process, and that it has gone, has had its effect
ROOT = Path(__file__).resolve().parents[1]


class Steps:
    """A party: the mean of a few steps, with ``ours`` or the ``default`` way to wait."""

    def __init__(self, waits: str) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
        command = [sys.executable, "-m", "benchmarks.busy", waits]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)  # ends with its input
        self()

    def __call__(self, before: float = 0.0) -> float:
        self._process.stdin.write(f"{before} {STEPS}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def crowded(self) -> float:
        """The same while another process is busy on one of its cores."""
        with _busy_process():
            return self(NOTICED)

    def alone(self) -> float:
        """The same a while after anything else ran, the other party's steps among them."""
        time.sleep(FORGOTTEN)
        return self(NOTICED)


@contextlib.contextmanager
def _busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=_keep_to_cores)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _keep_to_cores() -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def main(waits: str) -> None:
    _keep_to_cores()
    import torch

    import sca
    import sca_kernels
    from sca.bench.work import sgd, training_step

    from .measure import clock, sampled

    sca_kernels.reuse_host_memory()
    if waits == "ours":
        sca_kernels.share_cores()
    torch.set_num_threads(CORES)
    config = sca.training.TrainConfig.from_preset(density=1.0)
    trainer = sca.training.Trainer.from_config(config, sca.data.load(config.data))
    batch = next(iter(trainer.dataset.train_batches(config.batch_size, seed=0, epoch=0)))
    optimizer = sgd(trainer.model)

    def step() -> None:
        training_step(trainer.model, *batch, optimizer)

    for line in sys.stdin:
        before, steps = line.split()
        end = time.perf_counter() + float(before)
        while time.perf_counter() < end:
            step()
        taken, _ = sampled(clock, lambda times=int(steps): [step() for _ in range(times)])
        print(taken / int(steps), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
