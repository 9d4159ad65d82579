"""Training steps of VGG-16 in bfloat16 autocast: ours and SpikingJelly's, each as it stands and as a CUDA graph.

A step is made by a function, so that what making it allocates can be measured, too; each has a network of its own.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sca
from sca.bench.memory import allocated
from sca.bench.peers import spikingjelly_vgg
from sca.bench.work import mean_loss, prune_evenly, sgd, training_step
from sca.training import GraphedStep
from sca.training.precision import autocast
from sca_kernels import doctor

from .cases import OURS, SPIKINGJELLY
from .measure import Named, Party, require

GRAPHED = f"{OURS}, captured"
COMPILED = f"{SPIKINGJELLY}, contiguous, compiled"
TWINS = {  # in channels_last, as ours; its Triton neurons take contiguous tensors alone, and copy others
    SPIKINGJELLY: (torch.channels_last, "as it stands"),
    f"{SPIKINGJELLY}, captured": (torch.channels_last, "captured"),
    f"{SPIKINGJELLY}, contiguous": (torch.contiguous_format, "as it stands"),
    f"{SPIKINGJELLY}, contiguous, captured": (torch.contiguous_format, "captured"),
    COMPILED: (torch.contiguous_format, "compiled"),
}
"""SpikingJelly's steps: the layout of the network, and how it runs."""
BOUND = "bound"
WARM_UP = 5
"""Steps until one is replayed, in both runners: three in front of a capture, the one that is captured, and another."""

Make = Callable[[], Party | None]


class Setting(NamedTuple):
    """What is trained where.

    Attributes:
        device: ``cuda``, or ``cpu`` to see that it runs.
        backend: that ours must run on.
        batch: images.
        density: active / all channels of our network.
        width: factor on all of them.
    """

    device: str
    backend: str
    batch: int
    density: float
    width: float = 1.0


def makers(setting: Setting) -> dict[str, Make]:
    """What makes the steps: our network, captured and as it stands, and its dense twins."""
    device, backend, batch, density, _ = setting
    images = torch.randn(batch, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), device=device)
    model = _network(setting)
    twin = spikingjelly_vgg(model, detach_reset=True)
    if twin is not None:
        twin.to(device)
        with torch.no_grad():
            first = [mean_loss(copy.deepcopy(net), images, labels, "bfloat16").item() for net in (model, twin)]
        require(abs(first[0] - first[1]) <= 0.1 * first[1], f"both networks start at the same loss, {first}")
    _prune(model, density)
    ours = {GRAPHED: _our_graph, OURS: _our_step}
    theirs = {name: partial(_their_step, name, twin, images, labels) for name in TWINS}
    return {name: partial(make, backend, model, images, labels) for name, make in ours.items()} | theirs


def made(steps: dict[str, Make]) -> dict[str, Party | None]:
    """The steps themselves, warmed up."""
    return {name: make() for name, make in steps.items()}


def _network(setting: Setting) -> nn.Module:
    shape = {"num_classes": 10, "in_channels": 3, "time_steps": 4, "width": setting.width}
    return sca.models.build("vgg16", **shape, detach_reset=True).to(setting.device)


def _prune(model: nn.Module, density: float) -> None:
    if density < 1:
        prune_evenly(model, density, round_to=16)


def _our_step(backend: str, model: nn.Module, images: Tensor, labels: Tensor) -> Named:
    net = copy.deepcopy(model)
    step = partial(training_step, net, images, labels, sgd(net), "bfloat16")
    for _ in range(WARM_UP):
        step()
    return Named(step, backend)


def _our_graph(backend: str, model: nn.Module, images: Tensor, labels: Tensor) -> Named:
    net = copy.deepcopy(model)
    step = GraphedStep(net, sgd(net), _time_mean_loss, precision="bfloat16")
    ran = doctor.backends_of(lambda: [step(images, labels) for _ in range(WARM_UP)])
    require(ran == [backend], f"a step of ours runs on {backend} alone in front of its capture, not {', '.join(ran)}")
    is_captured = images.device.type == "cuda"  # there is no graph elsewhere
    require(not is_captured or step.replays > 0, f"a step of ours is captured: {step.obstacle}")
    return Named(partial(step, images, labels), backend, is_replayed=is_captured)


def _time_mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """As :func:`sca.bench.work.mean_loss` has it."""
    return cross_entropy(logits.float().mean(0), labels)


def _their_step(name: str, twin: nn.Module | None, images: Tensor, labels: Tensor) -> Party | None:
    """One of :data:`TWINS`; None where it can't be had here: not installed, no CUDA device, or it failed, which is
    told."""
    layout, way = TWINS[name]
    if twin is None or (way != "as it stands" and images.device.type != "cuda"):
        return None
    net, images = copy.deepcopy(twin).to(memory_format=layout), images.contiguous(memory_format=layout)
    if way == "captured":
        step = _their_graph(net, images, labels)
    else:
        run = torch.compile(net, dynamic=False) if way == "compiled" else net
        step = partial(training_step, run, images, labels, sgd(net), "bfloat16")
    try:
        for _ in range(WARM_UP):
            step()
    except Exception as error:  # a compiler's errors have no common kind
        print(f"{name}: not measured, for it failed ({type(error).__name__}: {error})", file=sys.stderr)
        return None
    return step


def _their_graph(net: nn.Module, images: Tensor, labels: Tensor) -> Party:
    """By SpikingJelly's own runner, and as its training of classifiers calls it: forward pass, loss and backward pass
    are the graph; gradients are set to zero in front of it, and the optimizer steps behind."""
    from spikingjelly.activation_based._cuda_graph import StaticCudaGraph

    optimizer = sgd(net)

    def passes(images: Tensor, labels: Tensor) -> Tensor:
        loss = mean_loss(net, images, labels, "bfloat16")
        loss.backward()
        return loss

    graph = StaticCudaGraph(passes)

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)  # the graph adds to these very tensors
        graph(images, labels)
        optimizer.step()

    return step


def peaks(steps: dict[str, Make], setting: Setting) -> dict[str, Party | None]:
    """MiB at the peak of training, beyond parameters and batch: what passes keep, gradients, the optimizer's state.

    Taken from a new network's first step to a replay, for a replay itself allocates nothing: its memory is that of the
    capture. Each step is made once before, so that what is kept for good is there, and what can't be had is known.
    """

    def peak(make: Make) -> float:
        return allocated(make, setting.device).peak / 2**20

    parties = {name: make() and partial(peak, make) for name, make in steps.items()}
    return {name: Named(party, setting.backend) if name.startswith(OURS) else party for name, party in parties.items()}


def host_times(steps: dict[str, Party | None], device: str, at_most: float) -> dict[str, Party | None]:
    """Milliseconds until a step has been handed over to a device that has nothing else to do, and the bound of ours."""

    def handed_over(step: Party) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        return (time.perf_counter() - start) * 1e3

    return _inside(handed_over, steps) | {BOUND: lambda: at_most}


def launches(steps: dict[str, Party | None], device: str, at_most: float | None = None) -> dict[str, Party | None]:
    """What a step asks the CUDA driver to start, and the bound of ours, if any. On a CPU, to see that it counts,
    torch's operators."""
    wanted = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemset", "cudaMemcpy")

    def started(step: Party) -> float:
        with torch.profiler.profile() as profiler:
            step()
            if device == "cuda":
                torch.cuda.synchronize()
        count = sum(event.name.startswith(wanted if device == "cuda" else "aten::") for event in profiler.events())
        require(count > 0, "torch's profiler sees what is started")
        return float(count)

    return _inside(started, steps) | ({} if at_most is None else {BOUND: lambda: at_most})


def _inside(sample: Callable[[Party], float], steps: dict[str, Party | None]) -> dict[str, Party | None]:
    """The parties that measure the steps themselves."""
    return {
        name: replace(step, run=partial(sample, step.run))
        if isinstance(step, Named)
        else step and partial(sample, step)
        for name, step in steps.items()
    }


def layers(setting: Setting) -> dict[str, Party | None]:
    """Forward and backward pass of the 13 convolutions with batch norm and neurons alone, as they stand: without pools,
    classifier, loss and optimizer."""
    device = setting.device
    model = _network(setting)
    _prune(model, setting.density)
    for block in model.features:
        block.pool = nn.Identity()
    images = torch.randn(1, setting.batch, 3, 32, 32, device=device)
    parameters = list(model.features.parameters())

    def forward() -> Tensor:
        with autocast("bfloat16", device):
            first, *others = model.features
            spikes = first(images, time_steps=model.time_steps)
            for block in others:
                spikes = block(spikes)
        return spikes

    grad = torch.ones_like(forward())

    def passes() -> None:
        for parameter in parameters:
            parameter.grad = None
        forward().backward(grad)

    passes()
    return {OURS: Named(passes, setting.backend)}
