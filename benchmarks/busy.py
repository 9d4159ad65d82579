"""Training steps in a process of their own, on two cores, alone or beside a process that never waits.

How long OpenMP's threads spin is said when its library is loaded, so each way needs a process. `python -m
benchmarks.busy ours|default`: read numbers of steps, a line each, and print how many milliseconds one took.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

CORES = 2
STEPS = 5
ROOT = Path(__file__).resolve().parents[1]


class Steps:
    """A party: the mean of a few steps, with ``ours`` or the ``default`` way to wait."""

    def __init__(self, waits: str) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
        command = [sys.executable, "-m", "benchmarks.busy", waits]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)  # ends with its input
        self()

    def __call__(self) -> float:
        self._process.stdin.write(f"{STEPS}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())


def crowded(party: Callable[[], float]) -> Callable[[], float]:
    """The same while another process is busy on one of its cores."""

    def beside() -> float:
        with _busy_process():
            return party()

    return beside


@contextlib.contextmanager
def _busy_process() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"], preexec_fn=_keep_to_cores)
    try:
        time.sleep(0.1)
        yield
    finally:
        process.kill()
        process.wait()


def _keep_to_cores() -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def main(waits: str) -> None:
    _keep_to_cores()
    if waits == "ours":
        from sca.cli.threads import spin_briefly

        spin_briefly()
    import torch

    import sca
    import sca_kernels
    from sca.bench.work import sgd, training_step

    sca_kernels.reuse_host_memory()
    torch.set_num_threads(CORES)
    config = sca.training.TrainConfig.from_preset(density=1.0)
    trainer = sca.training.Trainer(config, sca.data.load(config.data))
    batch = next(iter(trainer.dataset.train_batches(config.batch_size, seed=0, epoch=0)))
    optimizer = sgd(trainer.model)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            training_step(trainer.model, *batch, optimizer)
        print((time.perf_counter() - start) * 1e3 / int(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
