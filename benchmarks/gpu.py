"""`python -m benchmarks.gpu [G1 G2 ...]`: the cases that need a CUDA device; measure, store, print one table.

Parties take turns in one process, timed with device events. `--smoke` runs tiny shapes for two rounds, on any
device, and stores nothing: it only shows that the cases run.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy

import sca
from sca.bench.memory import allocated
from sca.bench.peers import spikingjelly_vgg
from sca.bench.work import mean_loss, prune_evenly, sgd, training_step
from sca.training import GraphedStep
from sca_kernels import doctor
from sca_kernels import functional as F
from sca_kernels.backends import registry
from sca_kernels.testing import activation

from . import peers, results
from .cases import COMPILE, OURS, SPIKINGJELLY, Bar, Case, label, returned
from .measure import Party, clock, flip_rate, forward_backward, ratio, relative_error, require, sampled, summary
from .run import table

CUDNN = "cuDNN dense"
COPY = "copies of the minimum bytes"
GRAPHED = f"{OURS}, captured"
SPIKINGJELLY_GRAPHED = f"{SPIKINGJELLY}, captured"
COPY_SHARE = 0.85  # of copy bandwidth, at least
LAYOUTS = ("contiguous", "channels_last")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Scale:
    """Where and how large the cases run: one gibibyte per activation, or, to see that they run, next to nothing."""

    device: str
    smoke: bool

    def shape(self, dtype: torch.dtype) -> tuple[int, ...]:
        """[T, N, C, H, W] of an activation."""
        return (4, 2, 16, 8, 8) if self.smoke else (4, 512 // dtype.itemsize, 128, 64, 64)

    def batch(self, batch: int) -> int:
        return 2 if self.smoke else batch

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


def ours(scale: Scale, dtype: torch.dtype) -> dict[str, Callable[[Tensor], Tensor]]:
    """Our LIF, run as its module runs it: on what a user gets, and on each other backend of this device by its name."""
    device = torch.device(scale.device)
    able = [
        name
        for name, backend in registry().items()
        if scale.device not in backend.only_by_name and backend.supports(device, dtype)[0]
    ]
    told = {OURS: None} | {f"{OURS}, {name}": name for name in able[1:] if name != "reference"}
    return {
        name: lambda x, backend=backend: F.lif(x, return_v=False, backend=backend).spikes
        for name, backend in told.items()
    }


def build_neuron(scale: Scale, dtype: str, layout: str) -> dict[str, Party | None]:
    kind, last = DTYPES[dtype], layout == "channels_last"
    check = activation((4, 2, 16, 8, 8), kind, last, scale.device).requires_grad_()
    functions = {
        **ours(scale, kind),
        SPIKINGJELLY: peers.spikingjelly_lif(),
        COMPILE: peers.compiled(peers.eager_lif),
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
            is_ours = name.startswith(OURS)
            flips = 0 if is_ours or kind == torch.float32 else 0.05
            require(flip_rate(spikes, expected) <= flips, f"{name} spikes as the float32 equations do")
            error = 1e-6 if kind == torch.float32 else 2e-2 if is_ours else 1
            require(relative_error(check.grad, truth.grad) <= error, f"{name} has their gradient")
    x = activation(scale.shape(kind), kind, last, scale.device).requires_grad_()
    grad = torch.randn_like(x)
    parties = {name: function and forward_backward(function, [x], grad) for name, function in functions.items()}
    # Forward: x in, spikes out. Backward: their gradient and x in, that of x out.
    return parties | {COPY: copies(x.detach(), 5)}


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

    functions = {
        OURS: fused,
        SPIKINGJELLY: before(peers.spikingjelly_lif()),
        COMPILE: peers.compiled(before(peers.eager_lif)),
    }
    weights = torch.randn_like(check)
    truth = check.detach().float().requires_grad_()
    expected = fused(truth, norm.weight, norm.bias, backend="reference")
    expected.backward(weights.float())
    spikes = fused(check, norm.weight, norm.bias)
    spikes.backward(weights)
    require(torch.equal(spikes.float(), expected.detach()), "ours spikes as the reference does")
    error = relative_error(check.grad, truth.grad)
    require(
        error <= (1e-5 if kind == torch.float32 else 2e-2), f"ours has the reference's gradient, off by {error:.1e}"
    )
    x = activation(shape, kind, last, scale.device).requires_grad_()
    inputs, grad = [x, norm.weight, norm.bias], torch.randn_like(x)
    parties = {name: function and forward_backward(function, inputs, grad) for name, function in functions.items()}
    # As above, and x once more for the statistics, and x and the gradient once more for their sums.
    return parties | {COPY: copies(x.detach(), 8)}


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
    return {
        OURS: forward_backward(ours, [narrow, weight], pick(grad)),
        CUDNN: forward_backward(dense, [x.requires_grad_(), weight], grad),
    }


def networks(scale: Scale, batch: int, density: float) -> tuple[nn.Module, nn.Module | None, Tensor, Tensor]:
    """Our VGG-16 at a density, SpikingJelly's dense twin, and a batch of images and labels."""
    batch = scale.batch(batch)
    images = torch.randn(batch, 3, 32, 32, device=scale.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), device=scale.device)
    model = sca.models.build("vgg16", num_classes=10, in_channels=3, time_steps=4, detach_reset=True)
    model.to(scale.device)
    twin = spikingjelly_vgg(model, detach_reset=True)
    if twin is not None:
        twin.to(scale.device)
        first = [mean_loss(net, images, labels, "bfloat16").item() for net in (model, twin)]
        require(abs(first[0] - first[1]) <= 0.1 * first[1], f"both networks start at the same loss, {first}")
    if density < 1:
        prune_evenly(model, density, round_to=16)
    return model, twin, images, labels


def build_step(scale: Scale, batch: int, density: float) -> dict[str, Party | None]:
    """One training step in bfloat16 autocast: ours captured and as it stands, SpikingJelly's dense twin the same two
    ways. Steps of ours are run by the backend that the device prefers, without any other taking over."""
    model, twin, images, labels = networks(scale, batch, density)
    ours = partial(training_step, model, images, labels, sgd(model), "bfloat16")
    twin_of_ours = copy.deepcopy(model)
    step = GraphedStep(twin_of_ours, sgd(twin_of_ours), time_mean_loss, precision="bfloat16")
    ran = doctor.backends_of(lambda: [(ours(), step(images, labels)) for _ in range(step.warmup + 2)])
    if scale.device == "cuda":
        require(ran == ["triton"] and not doctor.failures(), f"the steps run on triton, got {ran}, {doctor.failures()}")
        require(step.captures == 1 and step.replays > 0, f"our step is captured: {step.obstacle}")
    return {
        GRAPHED: partial(step, images, labels),
        OURS: ours,
        SPIKINGJELLY: twin and partial(training_step, twin, images, labels, sgd(twin), "bfloat16"),
        SPIKINGJELLY_GRAPHED: twin and captured_passes(twin, images, labels),
    }


def time_mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """As :func:`sca.bench.work.mean_loss` has it."""
    return cross_entropy(logits.float().mean(0), labels)


def captured_passes(twin: nn.Module, images: Tensor, labels: Tensor) -> Party | None:
    """A peer's forward pass, loss and backward pass as one CUDA graph, with its optimizer behind it, as its developers'
    own runner has it (SpikingJelly, pull request 740; not in 2.0.0). None where it can't be captured, or without
    CUDA."""
    if images.device.type != "cuda":
        return None
    from spikingjelly.activation_based.functional import reset_net

    reset_net(twin)  # whose potentials are part of a graph of autograd's, and can't be copied
    twin = copy.deepcopy(twin)
    optimizer, stream = sgd(twin), torch.cuda.Stream()

    def passes() -> None:
        for p in twin.parameters():
            p.grad = None
        mean_loss(twin, images, labels, "bfloat16").backward()

    try:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                passes()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            passes()
    except RuntimeError as error:
        print(f"{SPIKINGJELLY_GRAPHED}: can't be captured ({error})", file=sys.stderr)
        return None

    def party() -> None:
        graph.replay()
        optimizer.step()

    return party


def build_peak_memory(scale: Scale, batch: int, density: float) -> dict[str, Party | None]:
    """Of steps as they stand: a graph holds the same memory, in a pool that the allocator does not count."""

    def peak(step: Callable[[], None]) -> float:
        step()  # the optimizer's state and the gradients are there from now on
        return allocated(step, scale.device).peak / 2**20

    model, twin, images, labels = networks(scale, batch, density)
    nets = {OURS: model, SPIKINGJELLY: twin}
    return {
        name: net and partial(peak, partial(training_step, net, images, labels, sgd(net), "bfloat16"))
        for name, net in nets.items()
    }


def build_host_time(scale: Scale, batch: int, density: float) -> dict[str, Party | None]:
    """Milliseconds until a step has been handed to the device, which has nothing else to do."""

    def handed_over(party: Party) -> float:
        if scale.device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        party()
        return (time.perf_counter() - start) * 1e3

    return {name: party and partial(handed_over, party) for name, party in build_step(scale, batch, density).items()}


def build_launches(scale: Scale, batch: int, density: float) -> dict[str, Party | None]:
    """What a step asks the CUDA driver to start, by torch's profiler; elsewhere, torch's operators."""

    def started(party: Party) -> float:
        with torch.profiler.profile() as profiler:
            party()
            if scale.device == "cuda":
                torch.cuda.synchronize()
        wanted = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemset") if scale.device == "cuda" else ("aten::",)
        return float(sum(event.name.startswith(wanted) for event in profiler.events()))

    return {name: party and partial(started, party) for name, party in build_step(scale, batch, density).items()}


GRID = [{"dtype": dtype, "layout": layout} for dtype in DTYPES for layout in LAYOUTS]


def cases(scale: Scale) -> dict[str, Case]:
    """The cases of one device."""
    steps = [{"batch": batch, "density": density} for batch in (64, 256, 512) for density in (1.0, 0.5, 0.3)]
    able = scale.device == "cuda" or registry()["triton"].supports(torch.device(scale.device), torch.bfloat16)[0]
    convolutions = [
        {"channels": channels, "density": density, "path": path}
        for channels in (128, 256, 512)
        for density in (1.0, 0.5, 0.3)
        for path in (PATHS if able else ("gathered",))
    ]
    faster = {1.0: 1.5, 0.3: 4.0}  # by density, than the better of SpikingJelly's two
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
                lambda dtype, layout: [Bar(SPIKINGJELLY, at_least=2 if dtype == "bfloat16" else 1.6)],
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
                    for peer in (SPIKINGJELLY, SPIKINGJELLY_GRAPHED)
                    if density in faster
                ],
                scale.clock,
                counted=False,  # a replay calls no backend: which one ran is asked when the step is built
            ),
            Case(
                "G5",
                "activation memory of such a step at its peak",
                "MiB",
                [{"batch": 256, "density": density} for density in (1.0, 0.5, 0.3)],
                partial(build_peak_memory, scale),
                lambda batch, density: [Bar(SPIKINGJELLY, at_most=0.4)],
                returned,
                rounds=1,
                warmup=0,
            ),
            Case(
                "G8",
                "host time of such a step, until it has been handed over; captured, 0.2 ms at most",
                "ms",
                small,
                partial(build_host_time, scale),
                lambda **_: [],
                returned,
                counted=False,
            ),
            Case(
                "G8-launches",
                "what such a step asks the CUDA driver to start",
                "launches",
                small,
                partial(build_launches, scale),
                lambda **_: [],
                returned,
                rounds=1,
                warmup=1,
                counted=False,
            ),
        )
    }


def take(case: Case, variant: dict[str, Any], rounds: int) -> dict[str, Any]:
    """One figure: every party once per round, in turn, after warm-up."""
    torch.manual_seed(0)
    parties = case.build(**variant)
    present = [name for name, party in parties.items() if party is not None]
    backends: dict[str, str | None] = {}
    samples: dict[str, list[float]] = defaultdict(list)
    for _ in range(case.warmup + rounds):
        for name in present:
            if name.startswith(OURS):
                value, backends[name] = case.sample_ours(parties[name])
            else:
                value = case.sample(parties[name])
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
            figures.append(take(case, variant, 2 if scale.smoke and case.rounds > 1 else case.rounds))
            if scale.device == "cuda":
                torch.cuda.empty_cache()
            results.store_part(folder, case.id, told, work=case.work, unit=case.unit, figures=figures)


def profile(chosen: Sequence[Case]) -> None:
    """Run our party of every figure twice, for a profiler that watches this process."""
    for case in chosen:
        for variant in case.variants:
            party = next(iter(case.build(**variant).values()))
            for _ in range(2):
                sampled(clock, party)


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
        print(*missing(known, folder, conditions(command, scale)["device"]), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
