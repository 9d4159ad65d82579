"""`python -m benchmarks.gpu [G1 G2 ...]`: the cases that need a CUDA device; measure, store, print one table.

Parties take turns in one process, timed with device events. `--smoke` runs tiny shapes for two rounds, on any
device, and stores nothing: it only shows that the cases run.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import conv2d

from sca_kernels import functional as F
from sca_kernels.backends import registry
from sca_kernels.testing import activation

from . import gpu_steps, peers, results
from .cases import COMPILE, OURS, SPIKINGJELLY, Bar, Case, label, returned
from .measure import Named, Party, clock, flip_rate, forward_backward, ratio, relative_error, require, summary
from .run import table

CUDNN = "cuDNN dense"
COPY = "copies of the minimum bytes"
COPY_SHARE = 0.85  # of copy bandwidth, at least
HOST_MS, LAUNCHES = 0.2, 160  # at most: of a captured step; of 13 layers as they stand
LAYERS, STEP = "13 layers", "step"
LAYOUTS = ("contiguous", "channels_last")
GPU_BACKENDS = ("triton", "cuda")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Scale:
    """Where and how large the cases run: one gibibyte per activation, or, to see that they run, next to nothing."""

    device: str
    smoke: bool

    def shape(self, dtype: torch.dtype) -> tuple[int, ...]:
        """[T, N, C, H, W] of an activation."""
        return (4, 2, 16, 8, 8) if self.smoke else (4, 512 // dtype.itemsize, 128, 64, 64)

    def clock(self, party: Party) -> float:
        """Milliseconds that one call takes on the device."""
        if self.device == "cpu":
            return clock(party)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        party()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def compiled(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """torch.compile; to see that a case runs, without a compiler's time."""
        return peers.compiled(function, "aot_eager" if self.smoke else "inductor")


def copies(x: Tensor, passes: int) -> Party:
    """Read or write as many bytes as so many passes over x, by the device's own copy."""
    target = torch.empty_like(x)
    whole, halved = divmod(passes, 2)

    def party() -> None:
        for _ in range(whole):
            target.copy_(x)
        if halved:
            target[: len(x) // 2].copy_(x[: len(x) // 2])

    return party


def _able(scale: Scale, dtype: torch.dtype) -> list[str]:
    """Backends that run on the device without being named, the preferred one first."""
    backends = (backend for backend in registry().values() if scale.device not in backend.only_by_name)
    return [backend.name for backend in backends if backend.supports(torch.device(scale.device), dtype)[0]]


def preferred(scale: Scale, dtype: torch.dtype) -> str:
    """The backend that a user gets."""
    return _able(scale, dtype)[0]


def named(scale: Scale, dtype: torch.dtype) -> dict[str, str | None]:
    """Our parties, and the backend that each must run on: what a user gets, and on a GPU the other one that has kernels
    for it; None where that can't run."""
    first, *others = _able(scale, dtype)
    wanted = [name for name in GPU_BACKENDS if name != first] if scale.device == "cuda" else []
    return {OURS: first} | {f"{OURS}, {name}": name if name in others else None for name in wanted}


def timed(
    functions: dict[str, Callable[..., Tensor] | None],
    backends: dict[str, str | None],
    inputs: Sequence[Tensor],
    grad: Tensor,
) -> dict[str, Party | None]:
    """The passes of these functions as parties, ours by the backends that must run them."""
    parties = {name: function and forward_backward(function, inputs, grad) for name, function in functions.items()}
    return {
        name: Named(party, backends[name]) if party and name in backends else party for name, party in parties.items()
    }


def build_neuron(scale: Scale, dtype: str, layout: str) -> dict[str, Party | None]:
    kind, last = DTYPES[dtype], layout == "channels_last"
    check = activation((4, 2, 16, 8, 8), kind, last, scale.device).requires_grad_()
    backends = named(scale, kind)

    def ours(name: str) -> Callable[[Tensor], Tensor]:
        """As its module runs it."""
        backend = None if name == OURS else backends[name]
        return lambda x: F.lif(x, return_v=False, backend=backend).spikes

    functions = {name: backend and ours(name) for name, backend in backends.items()} | {
        SPIKINGJELLY: peers.spikingjelly_lif(),
        COMPILE: scale.compiled(peers.eager_lif),
    }
    weights = torch.randn_like(check)
    truth = check.detach().float().requires_grad_()
    expected = F.lif(truth, backend="reference").spikes
    expected.backward(weights.float())
    require(0.05 < expected.mean() < 0.5, "the neurons spike at a realistic rate")
    for name, function in functions.items():
        if function:
            check.grad = None
            spikes = function(check)
            spikes.backward(weights)
            # Ours keep a float32 state whatever comes in; the others may not.
            is_ours = name in backends
            flips = 0 if is_ours or kind == torch.float32 else 0.05
            require(flip_rate(spikes, expected) <= flips, f"{name} spikes as the float32 equations do")
            error = 1e-6 if kind == torch.float32 else 2e-2 if is_ours else 1
            require(relative_error(check.grad, truth.grad) <= error, f"{name} has their gradient")
    x = activation(scale.shape(kind), kind, last, scale.device).requires_grad_()
    grad = torch.randn_like(x)
    # Forward: x in, spikes out. Backward: their gradient and x in, that of x out.
    return timed(functions, backends, [x], grad) | {COPY: copies(x.detach(), 5)}


def build_batch_norm_neuron(scale: Scale, dtype: str, layout: str) -> dict[str, Party | None]:
    kind, last = DTYPES[dtype], layout == "channels_last"
    shape = scale.shape(kind)
    check = activation((4, 2, shape[2], 8, 8), kind, last, scale.device).requires_grad_()
    norm = nn.BatchNorm2d(shape[2], device=scale.device)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, 0.0, 1.0)

    def fused(x: Tensor, weight: Tensor, bias: Tensor, backend: str | None = None) -> Tensor:
        statistics = (norm.running_mean, norm.running_var)
        options = {"training": True, "return_v": False, "backend": backend}
        return F.batch_norm_lif(x, weight, bias, *statistics, **options).spikes

    def before(lif: Callable[[Tensor], Tensor] | None) -> Callable[..., Tensor] | None:
        return lif and (lambda x, weight, bias: lif(norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])))

    backends = named(scale, kind)
    fusions = {
        name: backend and partial(fused, backend=None if name == OURS else backend)
        for name, backend in backends.items()
    }
    functions = fusions | {
        SPIKINGJELLY: before(peers.spikingjelly_lif()),
        COMPILE: scale.compiled(before(peers.eager_lif)),
    }
    weights = torch.randn_like(check)
    truth = check.detach().float().requires_grad_()
    expected = fused(truth, norm.weight, norm.bias, backend="reference")
    expected.backward(weights.float())
    for name, function in fusions.items():
        if function:
            check.grad = None
            spikes = function(check, norm.weight, norm.bias)
            spikes.backward(weights)
            # Statistics may differ in their last bits, and a potential may lie that close to the threshold.
            flips = flip_rate(spikes, expected.detach())
            require(flips <= 1e-4, f"{name} spikes as the reference does")
            error = relative_error(check.grad, truth.grad)
            allowed = 1e-5 if kind == torch.float32 and not flips else 2e-2
            require(error <= allowed, f"{name} has the reference's gradient, off by {error:.1e}")
    x = activation(shape, kind, last, scale.device).requires_grad_()
    inputs, grad = [x, norm.weight, norm.bias], torch.randn_like(x)
    # As above, and x once more for the statistics, and x and the gradient once more for their sums.
    return timed(functions, backends, inputs, grad) | {COPY: copies(x.detach(), 8)}


PATHS = {
    "gathered": {"path": "gathered"},
    "implicit": {"path": "implicit", "backend": "triton"},
}


def build_channel_conv(scale: Scale, channels: int, density: float, path: str) -> dict[str, Party | None]:
    """Frames of 4096 / C pixels a side, so that dense all widths multiply equally often; active channels in multiples
    of 8, as the scheduler keeps them on a GPU."""
    active = 8 * round(density * channels / 8)
    index = torch.randperm(channels)[:active].sort().values.to(scale.device) if active < channels else None
    weight = torch.randn(channels, channels, 3, 3, device=scale.device) / (9 * channels) ** 0.5
    weight = weight.to(torch.bfloat16).contiguous(memory_format=torch.channels_last).requires_grad_()

    def spikes(count: int, size: int) -> tuple[Tensor, Tensor]:
        x = (torch.rand(count, channels, size, size, device=scale.device) < 0.15).to(torch.bfloat16)
        x = x.contiguous(memory_format=torch.channels_last)
        return x, torch.randn_like(x)

    def pick(z: Tensor) -> Tensor:
        return z if index is None else z.index_select(1, index).contiguous(memory_format=torch.channels_last)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return F.channel_conv2d(x, weight, padding=1, in_channels=index, out_channels=index, **PATHS[path])

    def dense(x: Tensor, weight: Tensor) -> Tensor:
        return conv2d(x, weight, padding=1)

    x, grad = spikes(2, 8)
    check = pick(x).detach().requires_grad_()
    y = ours(check, weight)
    y.backward(pick(grad))
    truth, block = pick(x).float().requires_grad_(), weight.detach().float().requires_grad_()
    rows = slice(None) if index is None else index
    expected = dense(truth, block[rows][:, rows])
    expected.backward(pick(grad).float())
    for name, value, reference in (
        ("result", y, expected),
        ("gradient of x", check.grad, truth.grad),
        ("gradient of the weight, zero for dormant channels", weight.grad, block.grad),
    ):
        require(relative_error(value, reference) <= 2e-2, f"{path}: the {name} of the active channels")
    x, grad = spikes(*((2, 8) if scale.smoke else (1024, 4096 // channels)))
    narrow = pick(x).detach().requires_grad_()
    backend = PATHS[path].get("backend") or preferred(scale, torch.bfloat16)
    return {
        OURS: Named(forward_backward(ours, [narrow, weight], pick(grad)), backend),
        CUDNN: forward_backward(dense, [x.requires_grad_(), weight], grad),
    }


def setting(scale: Scale, batch: int, density: float) -> gpu_steps.Setting:
    """Of a case that trains; narrower where it is only to be seen that it runs."""
    backend = preferred(scale, torch.bfloat16)
    shape = (2, density, 0.25) if scale.smoke else (batch, density, 1.0)
    return gpu_steps.Setting(scale.device, backend, *shape)


def makers(scale: Scale, batch: int, density: float, with_compiled: bool = False) -> dict[str, gpu_steps.Make]:
    """What makes the steps; the compiled twin, which takes a minute, only where it is asked for."""
    made = gpu_steps.makers(setting(scale, batch, density))
    return {name: make for name, make in made.items() if with_compiled or name != gpu_steps.COMPILED}


def build_step(scale: Scale, batch: int, density: float) -> dict[str, Party | None]:
    # The twins are dense whatever the density of ours: the compiled one is measured once.
    return gpu_steps.made(makers(scale, batch, density, with_compiled=density == 1))


def build_peak_memory(scale: Scale, batch: int, density: float) -> dict[str, Party | None]:
    return gpu_steps.peaks(makers(scale, batch, density), setting(scale, batch, density))


def build_host_time(scale: Scale, batch: int, density: float) -> dict[str, Party | None]:
    return gpu_steps.host_times(gpu_steps.made(makers(scale, batch, density)), scale.device, HOST_MS)


def build_launches(scale: Scale, batch: int, density: float, part: str) -> dict[str, Party | None]:
    if part == STEP:
        return gpu_steps.launches(gpu_steps.made(makers(scale, batch, density)), scale.device)
    return gpu_steps.launches(gpu_steps.layers(setting(scale, batch, density)), scale.device, LAUNCHES)


GRID = [{"dtype": dtype, "layout": layout} for dtype in DTYPES for layout in LAYOUTS]


def cases(scale: Scale) -> dict[str, Case]:
    """The cases of one device."""
    densities = (1.0, 0.5, 0.3)
    batches, widths = ((64,), (128,)) if scale.smoke else ((64, 256, 512), (128, 256, 512))
    steps = [{"batch": batch, "density": density} for batch in batches for density in densities]
    able = scale.device == "cuda" or registry()["triton"].supports(torch.device(scale.device), torch.bfloat16)[0]
    convolutions = [
        {"channels": channels, "density": density, "path": path}
        for channels in widths
        for density in densities
        for path in (PATHS if able else ("gathered",))
    ]
    faster = {1.0: 1.5, 0.3: 4.0}  # by density, than the best of SpikingJelly's
    small = [{"batch": 64, "density": density} for density in (1.0, 0.3)]
    return {
        case.id: case
        for case in (
            Case(
                "G1",
                "LIF forward + backward with activity, T = 4, activations of 1 GiB",
                "ms",
                GRID,
                partial(build_neuron, scale),
                lambda dtype, layout: [
                    Bar(COPY, at_most=1 / COPY_SHARE),
                    Bar(SPIKINGJELLY, at_least=1.7 if dtype == "bfloat16" else 1.3),
                ],
                scale.clock,
            ),
            Case(
                "G2",
                "training batch norm + LIF forward + backward, T = 4, activations of 1 GiB",
                "ms",
                GRID,
                partial(build_batch_norm_neuron, scale),
                lambda dtype, layout: [
                    Bar(COPY, at_most=1 / COPY_SHARE),
                    Bar(SPIKINGJELLY, at_least=2 if dtype == "bfloat16" else 1.6),
                ],
                scale.clock,
            ),
            Case(
                "G3",
                "channel_conv2d 3x3 forward + backward, bfloat16 [1024, C, H, H] channels_last, 15 % spikes",
                "ms",
                convolutions,
                partial(build_channel_conv, scale),
                lambda channels, density, path: [Bar(CUDNN, at_most={0.5: 0.42, 0.3: 0.25}.get(density, 1.02))],
                scale.clock,
            ),
            Case(
                "G4",
                "VGG-16 training step, 32x32 images, T = 4, bfloat16 autocast",
                "ms",
                steps,
                partial(build_step, scale),
                lambda batch, density: [
                    Bar(peer, at_least=faster[density])
                    for peer in gpu_steps.TWINS
                    if density in faster and (density == 1 or peer != gpu_steps.COMPILED)
                ],
                scale.clock,
            ),
            Case(
                "G5",
                "memory of training such steps at its peak, beyond parameters and batch",
                "MiB",
                steps,
                partial(build_peak_memory, scale),
                lambda batch, density: [
                    Bar(peer, at_most=0.4) for peer in gpu_steps.TWINS if peer != gpu_steps.COMPILED
                ],
                returned,
                rounds=1,
                warmup=0,
            ),
            Case(
                "G8",
                "host time of such a step, until it has been handed over",
                "ms",
                small,
                partial(build_host_time, scale),
                lambda **_: [Bar(gpu_steps.BOUND, at_most=1)],
                returned,
            ),
            Case(
                "G8-launches",
                "what such a step, or its 13 convolutions with batch norm and neurons, asks the CUDA driver to start",
                "launches",
                [{**variant, "part": part} for variant in small for part in (LAYERS, STEP)],
                partial(build_launches, scale),
                lambda part, **_: [Bar(gpu_steps.BOUND, at_most=1)] if part == LAYERS else [],
                returned,
                rounds=1,
                warmup=1,
            ),
        )
    }


def take(case: Case, variant: dict[str, Any], rounds: int, warmup: int) -> dict[str, Any]:
    """One figure: every party once per round, in turn, after warm-up."""
    torch.manual_seed(0)
    parties = case.build(**variant)
    present = [name for name, party in parties.items() if party is not None]
    backends: dict[str, str | None] = {}
    samples: dict[str, list[float]] = defaultdict(list)
    for _ in range(warmup + rounds):
        for name in present:
            party = parties[name]
            if isinstance(party, Named):
                value, backends[name] = party.sampled(case.sample)
            else:
                value = case.sample(party)
            samples[name].append(value)
    taken = {name: values[-rounds:] for name, values in samples.items()}
    ours, *others = present
    bars = {bar.peer: bar for bar in case.bars(**variant)}
    ratios = {
        name: ratio(taken[ours], taken[name])
        if name in bars and bars[name].at_most is not None
        else ratio(taken[name], taken[ours])
        for name in others
    }
    return {
        "shape": label(variant) or case.work,
        "variant": variant,
        "backend": backends[ours],
        "backends": backends,
        "parties": {name: summary(taken[name]) if name in taken else results.NOT_MEASURED for name in parties},
        "ratios": ratios,
        "bars": {
            name: {"text": bar.text(), "reached": bar.reached(ratios[name]["median"]) if name in ratios else None}
            for name, bar in bars.items()
        },
    }


def conditions(command: str, scale: Scale) -> dict[str, Any]:
    """What the figures depend on."""
    told = results.conditions(command, "torch")
    if scale.device == "cuda":
        told["device"] = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
        told["versions"]["cuda"] = torch.version.cuda
    return told


def measure(chosen: Sequence[Case], scale: Scale, folder: Path, command: str) -> None:
    """Take and store all figures of these cases, each at once: an interrupted run goes on where it was, on the same
    commit and day."""
    told = conditions(command, scale)
    path = folder / told["device"] / f"{told['date'][:10]}.json"
    for case in chosen:
        held = next((part for part in results.parts(path) if part["case"] == case.id), None) if path.exists() else None
        figures = held["figures"] if held and held["conditions"]["commit"] == told["commit"] else []
        for variant in case.variants:
            if any(figure["variant"] == variant for figure in figures):
                continue
            rounds, warmup = (min(case.rounds, 2), 0) if scale.smoke else (case.rounds, case.warmup)
            figures.append(take(case, variant, rounds, warmup))
            gc.collect()  # graphs are in cycles, and keep their memory
            if scale.device == "cuda":
                torch.cuda.empty_cache()
            results.store_part(folder, case.id, told, work=case.work, unit=case.unit, figures=figures)


def profile(chosen: Sequence[Case]) -> None:
    """Run our party of every figure twice, for a profiler that watches this process."""
    for case in chosen:
        for variant in case.variants:
            party = next(iter(case.build(**variant).values()))
            for _ in range(2):
                party.sampled(clock)


def throughputs(folder: Path) -> list[str]:
    """Images per second of every training step in a folder, whose time the table has."""
    told = []
    for result in results.stored(folder):
        for figure in result["figures"] if result["case"] == "G4" else ():
            batch = figure["variant"]["batch"]
            rates = (
                f"{name}: {time if time == results.NOT_MEASURED else format(batch / time['median'] * 1e3, ',.0f')}"
                for name, time in figure["parties"].items()
            )
            told.append(f"images/s, {figure['shape']}: {'; '.join(rates)}")
    return told


def missing(known: dict[str, Case], folder: Path, device: str) -> list[str]:
    """Cases that no file of this device holds."""
    held = {result["case"] for result in results.stored(folder) if result["conditions"]["device"] == device}
    return [f"{case.id}, {case.work}: {results.NOT_MEASURED}" for case in known.values() if case.id not in held]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", nargs="*", help="cases to measure; all when left out")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, two rounds, nothing stored")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: with --smoke only")
    parser.add_argument("--store", type=Path, default=results.FOLDER, help="folder of the result files")
    parser.add_argument("--profile", action="store_true", help="run our kernels for a profiler; measure nothing")
    parser.add_argument("--record", nargs=2, metavar=("STAGE", "FILE"), help="store the last lines of another stage")
    parser.add_argument("--list", action="store_true", help="measure nothing, list the cases")
    options = parser.parse_args()
    scale = Scale(options.device, options.smoke)
    known = cases(scale)
    if unknown := set(options.ids) - set(known):
        parser.error(f"ids: expected some of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    chosen = [known[name] for name in options.ids or known]
    command = f"python -m benchmarks.gpu {' '.join(options.ids)}".strip()
    if options.list:
        for case in chosen:
            print(f"{case.id}: {case.work}: {len(case.variants)} figures")
        return 0
    if options.record:
        stage, log = options.record
        lines = Path(log).read_text().splitlines()
        print(
            results.store_part(options.store, stage, conditions(f"benchmarks/gpu_suite.sh {stage}", scale), lines=lines)
        )
        return 0
    if scale.device == "cpu" and not scale.smoke:
        parser.error("device: expected cuda, or --smoke; these figures mean nothing on a CPU")
    if options.profile:
        profile(chosen)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if scale.smoke else options.store
        measure(chosen, scale, folder, command)
        Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "160"))).print(table(folder))
        if not scale.smoke:
            print(*throughputs(folder), sep="\n")
        print(*missing(known, folder, conditions(command, scale)["device"]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
