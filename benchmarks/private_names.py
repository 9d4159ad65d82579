"""What the private names of torch buy: `python -m benchmarks.private_names [--rounds N]`.

The same work with a name and with what runs without it, in turn, in one process: a row per purpose of
`sca_kernels/torch_private.py`, and the time without it as a multiple of that with it (median, and the 20th to the 80th
percentile), where it is about time.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch

import sca
import sca_kernels
from sca.bench.work import sgd, training_step
from sca_kernels import functional as F
from sca_kernels import nn
from sca_kernels.nn import neuron
from sca_kernels.ops import common
from sca_kernels.torch_private import PRIVATE

from .measure import Party, clock, forward_backward, ratio

# What stands in for a name where the package uses it; those that are not here change no time of what is measured.
STAND_INS: dict[str, tuple[ModuleType, str, Callable[..., Any]]] = {
    "graph_task": (neuron, "graph_task", lambda: -1),
    "is_unwatched": (common, "is_unwatched", lambda arguments: False),
    "in_transform": (common, "in_transform", lambda: False),
}
_IMPORT = "import time, torch; start = time.perf_counter(); import sca_kernels; {}; print(time.perf_counter() - start)"
_WITH, _WITHOUT = _IMPORT.format("pass"), _IMPORT.format("torch.compiler.disable(print)")  # it loads the compiler


@contextlib.contextmanager
def without(purpose: str) -> Iterator[None]:
    """The package as it is where torch lacks the names of a purpose."""
    module, name, otherwise = STAND_INS[purpose]
    original = getattr(module, name)
    setattr(module, name, otherwise)
    try:
        yield
    finally:
        setattr(module, name, original)


def digits_step() -> Party:
    """A training step of E2: vgg9 x 0.5 on digits, with the activity that pruning asks for."""
    model = sca.models.build("vgg9", num_classes=10, in_channels=1, time_steps=4, image_size=8, width=0.5)
    for module in model.modules():
        if isinstance(module, neuron.NeuronModule):
            module.activity = nn.Activity()
    images, labels, optimizer = torch.rand(64, 1, 8, 8), torch.randint(10, (64,)), sgd(model)
    return lambda: training_step(model, images, labels, optimizer)


def lif(*shape: int) -> Party:
    """A LIF, forward and backward."""
    x = torch.randn(shape).requires_grad_()
    return forward_backward(lambda z: F.lif(z).spikes, [x], torch.randn(shape))


WORK = {
    "E2's step": digits_step,
    "A1": lambda: lif(4, 32, 64, 32, 32),
    "LIF [4, 2, 8, 4, 4]": lambda: lif(4, 2, 8, 4, 4),
}


def compared(party: Party, purpose: str, rounds: int) -> dict[str, float]:
    """Time without the names of a purpose over that with them."""
    samples: dict[bool, list[float]] = {True: [], False: []}
    for round_ in range(rounds):
        for lacking in (True, False) if round_ % 2 else (False, True):
            with without(purpose) if lacking else contextlib.nullcontext():
                party()  # what the other way has left in the caches
                samples[lacking].append(clock(party))
    return ratio(samples[True], samples[False])


def imports(rounds: int) -> dict[str, float]:
    """Seconds of `import sca_kernels` behind `import torch` without `torch._disable_dynamo`, over those with it."""
    samples: dict[str, list[float]] = {_WITHOUT: [], _WITH: []}
    for _ in range(rounds):
        for code, taken in samples.items():
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            taken.append(float(done.stdout))
    return ratio(samples[_WITHOUT], samples[_WITH])


def told(figure: dict[str, float]) -> str:
    return f"{figure['median']:.3f} [{figure['p20']:.3f}, {figure['p80']:.3f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="pairs of samples per figure (default: 60)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    sca_kernels.reuse_host_memory()
    torch.manual_seed(0)
    print(f"time without the names / with them; torch {torch.__version__}, {options.threads} threads", flush=True)
    figures: dict[str, dict[str, str]] = {purpose: {} for purpose in PRIVATE}
    figures["disable_dynamo"]["import sca_kernels"] = told(imports(max(3, options.rounds // 10)))
    for work, build in WORK.items():
        party = build()
        for _ in range(5):
            party()
        milliseconds = statistics.median(clock(party) for _ in range(9))
        for purpose in STAND_INS:
            figures[purpose][f"{work} ({milliseconds:.3g} ms)"] = told(compared(party, purpose, options.rounds))
    for purpose, private in PRIVATE.items():
        print(f"\n{purpose}: torch.{', torch.'.join(private.names)}")
        print(f"  buys       {private.buys}")
        for work, figure in figures[purpose].items():
            print(f"  measured   {figure}  {work}")
        print(f"  otherwise  {private.otherwise}")


if __name__ == "__main__":
    main()
