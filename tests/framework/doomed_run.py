"""``sca train`` in a forked process that may die in the middle: the child of test_runs.py and test_distributed.py.

The process that forks has imported everything already, so a run starts in milliseconds.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
from collections.abc import Callable
from functools import partial

import sklearn.datasets  # noqa: F401  (here for the fork, as are those below)
import torch
import torch._dynamo  # by the first optimizer
import torch.distributed

from sca import cli, training  # noqa: F401
from sca.cli import display, endings  # noqa: F401

FILE_EVENTS = ("open", "os.rename", "os.remove")


def leave_alone(destroy: Callable[[], None]) -> None:
    """End a process group, and say so where a wrapper holds it still: it can wait for the group's threads forever."""
    wrapper = torch.nn.parallel.DistributedDataParallel
    if any(type(held) is wrapper for held in gc.get_objects()):
        sys.stderr.write(f"a {wrapper.__name__} outlives its process group\n")
    destroy()


def main(
    arguments: list[str],
    folder: str,
    operation: int | None = None,
    seconds: float | None = None,
    environment: dict[str, str] | None = None,
    output: str = os.devnull,
) -> None:
    """Run the command; it ends with the process.

    Args:
        arguments: of ``sca``.
        folder: of the run.
        operation: kill -9 just before so many opened, renamed and removed files of the folder.
        seconds: death by SIGPROF, untreated, after so much CPU time: at any instruction, however busy the machine is.
        environment: variables to set, as torchrun would.
        output: file for what the command prints.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # who runs the tests by nohup has it ignored, and so would the command
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ.update(environment or {})
    seen = 0

    def count(event: str, details: tuple) -> None:
        nonlocal seen
        if event in FILE_EVENTS and str(details[0]).startswith(folder):
            seen += 1
            if seen == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    if operation is not None:
        sys.addaudithook(count)
    if seconds is not None:
        signal.setitimer(signal.ITIMER_PROF, seconds)
    torch.distributed.destroy_process_group = partial(leave_alone, torch.distributed.destroy_process_group)
    sys.stdout = sys.stderr = open(output, "w", buffering=1)  # noqa: SIM115
    sys.argv = ["sca", *arguments]
    cli.main()
