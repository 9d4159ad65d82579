"""What is measured, as data: shapes, parties and bars. Building a case checks that all parties compute the same thing.

A party is a function without arguments; the first one is ours. None stands for a peer that is not installed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

import sca
from sca.bench import foreign
from sca.bench.measure import EVENTS_PER_VALUE
from sca.bench.memory import saved_bytes
from sca.bench.peers import installed, snntorch_lif, spikingjelly_vgg
from sca.bench.work import mean_loss, prune_evenly, sgd, training_step
from sca.convert.timing import seconds_of
from sca_kernels import functional as F
from sca_kernels import nn as snn

from . import busy, peers, recordings, training
from .measure import Party, clock, flip_rate, forward_backward, relative_error, require, sampled

OURS = "sca_kernels"
SPIKINGJELLY = "SpikingJelly 2.0.0"
SNNTORCH = "snnTorch 1.0"
TONIC = "tonic 1.7.0"
COMPILE = "torch.compile"
FIVE, EIGHT = "five passes", "eight passes"
DENSE = "oneDNN dense"
TORCH = "import torch"
ALONE = "with nothing else running"
ORIGINAL = "the original"
SPINNING = "libgomp's default spins"
TRAINING, INFERENCE, PRUNED = "training", "inference", f"training, {foreign.KEPT:.0%} of the channels"

ACTIVATION = (4, 32, 64, 32, 32)
"""[T, N, C, H, W] of A1, A2 and A5."""
EVENT_FRAMES = (10, 16, 2, 48, 48)
"""[T, N, C, H, W] of A7."""


@dataclass(frozen=True)
class Bar:
    """``peer / ours >= at_least``, or ``ours / peer <= at_most``."""

    peer: str
    at_least: float | None = None
    at_most: float | None = None

    def text(self) -> str:
        return f">= {self.at_least:g} x" if self.at_most is None else f"<= {self.at_most:.3g}"

    def reached(self, ratio: float) -> bool:
        """Whether a measured ratio, taken in this bar's direction, reaches it."""
        return ratio >= self.at_least if self.at_most is None else ratio <= self.at_most


@dataclass(frozen=True)
class Case:
    """One line of work: its figures (one per variant), who takes part, and what must be reached.

    Attributes:
        build: ``build(**variant)`` -> the parties.
        bars: ``bars(**variant)`` -> the bars of that figure.
        sample: party -> one sample; by default the milliseconds that it takes.
        counted: our operators run in this process, so that their backend's counter must tell; not so where a command
            runs, or where our layers leave everything to torch.
    """

    id: str
    work: str
    unit: str
    variants: Sequence[dict[str, Any]]
    build: Callable[..., dict[str, Party | None]]
    bars: Callable[..., list[Bar]]
    sample: Callable[[Party], float] = clock
    rounds: int = 25
    warmup: int = 3
    counted: bool = True

    def sample_ours(self, party: Party) -> tuple[float, str | None]:
        """A sample of our party, and the backend that ran it.

        Raises:
            AssertionError: no backend did, though one should have, or another stood in for it.
        """
        value, backend = sampled(self.sample, party)
        require(backend is not None or not self.counted, "kernels of ours run")
        return value, backend


def label(variant: dict[str, Any]) -> str:
    """``channels=64, density=0.5`` for a variant."""
    return ", ".join(f"{key}={value}" for key, value in variant.items())


def activation(layout: str) -> Tensor:
    """Input currents that make a fifth of the LIF neurons spike."""
    x = torch.randn(ACTIVATION) * 1.5 + 0.3
    if layout == "channels_last":
        x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, x.shape[:2])
    return x.requires_grad_()


def spikes_like(*shape: int, rate: float = 0.15) -> Tensor:
    """Spikes at a realistic rate, [T * N, C, H, W], channels_last."""
    return (torch.rand(shape) < rate).float().contiguous(memory_format=torch.channels_last)


def build_neuron(layout: str) -> dict[str, Party | None]:
    x = activation(layout)
    grad = torch.randn_like(x)
    functions = {
        OURS: lambda x: F.lif(x, return_v=False).spikes,  # as nn.LIF has it: nobody asked for the last potential
        SPIKINGJELLY: peers.spikingjelly_lif(),
        COMPILE: peers.compiled(peers.eager_lif),
        SNNTORCH: snntorch_lif(),
    }
    parties = {name: function and forward_backward(function, [x], grad) for name, function in functions.items()}
    reference = peers.eager_lif(x)
    (gradient,) = torch.autograd.grad(reference, x, grad)
    require(0.05 < reference.mean() < 0.4, "the neurons spike at a realistic rate")
    for name, party in parties.items():
        if party:
            # snnTorch adds the halves of x and v where the others halve the difference: another rounding
            exact = name != SNNTORCH
            spikes, value = functions[name](x), (party(), x.grad)[1]
            require(flip_rate(spikes, reference) <= (0 if exact else 1e-6), f"{name} and eager torch spike alike")
            require(relative_error(value, gradient) <= (1e-6 if exact else 1e-3), f"{name} has eager torch's gradient")
    return parties | {FIVE: streamed(x.detach(), 5)}


def streamed(x: Tensor, passes: int) -> Party:
    """Copies, of two passes each and at last perhaps of one: x and its like stream through memory so many times. Five
    for a neuron (x, spikes, their gradient, x again and its gradient); eight where batch norm reads x twice more, and
    the spikes' gradient once."""
    target = torch.empty_like(x)
    half = x.shape[0] // 2

    def party() -> None:
        for _ in range(passes // 2):
            target.copy_(x)
        if passes % 2:
            target[:half].copy_(x[:half])

    return party


def build_batch_norm_neuron(layout: str) -> dict[str, Party | None]:
    x = activation(layout)
    grad = torch.randn_like(x)
    norm = nn.BatchNorm2d(x.shape[2])
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.uniform_(norm.bias, 0.0, 1.0)

    def ours(x: Tensor, weight: Tensor, bias: Tensor, backend: str | None = None) -> Tensor:
        statistics = (norm.running_mean, norm.running_var, True, 0.1, 1e-5)
        return F.batch_norm_lif(x, weight, bias, *statistics, return_v=False, backend=backend).spikes  # as in A1

    def before(lif: Callable[[Tensor], Tensor] | None) -> Callable[..., Tensor] | None:
        return lif and (lambda x, weight, bias: lif(norm(x.flatten(0, 1)).unflatten(0, x.shape[:2])))

    functions = {
        OURS: ours,
        SPIKINGJELLY: before(peers.spikingjelly_lif()),
        COMPILE: peers.compiled(before(peers.eager_lif)),
    }
    inputs = [x, norm.weight, norm.bias]
    parties = {name: function and forward_backward(function, inputs, grad) for name, function in functions.items()}
    reference = before(peers.eager_lif)(*inputs)
    gradients = torch.autograd.grad(reference, inputs, grad)
    require(0.05 < reference.mean() < 0.4, "the neurons spike at a realistic rate")
    for name, party in parties.items():
        if party:
            # Batch norm rounds differently, so a potential within a few ulp of the threshold may cross it.
            require(flip_rate(functions[name](*inputs), reference) <= 1e-5, f"{name} and eager torch spike alike")
            party()
            for tensor, gradient in zip(inputs, gradients, strict=True):
                require(relative_error(tensor.grad, gradient) <= 1e-2, f"{name} has eager torch's gradients")
    return parties | {FIVE: streamed(x.detach(), 5), EIGHT: streamed(x.detach(), 8)}


def build_channel_conv(channels: int, size: int, density: float) -> dict[str, Party | None]:
    x = spikes_like(4 * 32, channels, size, size)
    weight = (torch.randn(channels, channels, 3, 3) / (9 * channels) ** 0.5).contiguous(
        memory_format=torch.channels_last
    )
    weight.requires_grad_()
    active = round(density * channels)
    index = None if active == channels else torch.randperm(channels)[:active].sort().values
    narrow = x if index is None else x[:, index].contiguous(memory_format=torch.channels_last)
    grad = torch.randn_like(x)
    narrow_grad = grad if index is None else grad[:, index].contiguous(memory_format=torch.channels_last)
    for tensor in (x, narrow):
        tensor.requires_grad_()

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return F.channel_conv2d(x, weight, padding=1, in_channels=index, out_channels=index)

    def dense(x: Tensor, weight: Tensor) -> Tensor:
        return conv2d(x, weight, padding=1)

    parties = {
        OURS: forward_backward(ours, [narrow, weight], narrow_grad),
        DENSE: forward_backward(dense, [x, weight], grad),
    }
    rows = slice(None) if index is None else index
    reference = conv2d(narrow, weight[rows][:, rows], padding=1)
    gradients = torch.autograd.grad(reference, [narrow, weight], narrow_grad)
    require(relative_error(ours(narrow, weight), reference) <= 1e-5, "the convolution of the active channels")
    parties[OURS]()
    for tensor, gradient in zip((narrow, weight), gradients, strict=True):
        require(relative_error(tensor.grad, gradient) <= 1e-5, "its gradients, zero for dormant channels")
    return parties


@dataclass(frozen=True)
class Layer:
    """A convolution of a network: [images, inputs, size, size], square kernel, padded by half of it."""

    network: str
    images: int
    inputs: int
    outputs: int
    size: int
    kernel: int = 3
    stride: int = 1

    def __str__(self) -> str:
        kernel = f"{self.kernel}x{self.kernel}" + (f" / {self.stride}" if self.stride > 1 else "")
        return f"{self.network} [{self.images}, {self.inputs}, {self.size}, {self.size}] {kernel} to {self.outputs}"


def stages(network: str, images: int, size: int) -> list[Layer]:
    """The convolutions of ResNet-18's four stages, the first at maps of that size."""
    found = [Layer(network, images, 64, 64, size)]
    for inputs in (64, 128, 256):
        found += [Layer(network, images, inputs, 2 * inputs, size, kernel, 2) for kernel in (3, 1)]
        size //= 2
        found.append(Layer(network, images, 2 * inputs, 2 * inputs, size))
    return found


_VGG = ((64, 64, 32), (64, 128, 16), (128, 128, 16), (128, 256, 8), (256, 256, 8), (256, 512, 4), (512, 512, 4))
LAYERS = [  # T = 4; VGG-16 and ResNet-18 on 32 images of 32x32, SEW-ResNet-18 on 8 by the stem for large images
    Layer("VGG-16", 32, 3, 64, 32),
    *(Layer("VGG-16", 128, *shape) for shape in (*_VGG, (512, 512, 2))),
    *stages("ResNet-18", 128, 32)[1:],
    Layer("SEW-ResNet-18", 8, 3, 64, 32, 7, 2),
    *stages("SEW-ResNet-18", 32, 8),
]


def build_dense_conv(layer: str, layout: str) -> dict[str, Party | None]:
    layer = next(one for one in LAYERS if str(one) == layer)
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = torch.rand(layer.images, layer.inputs, layer.size, layer.size)
    x = (x if layer.inputs == 3 else (x < 0.15).float()).contiguous(memory_format=memory_format)
    x.requires_grad_(layer.inputs != 3)  # images have no gradient
    geometry = layer.inputs, layer.outputs, layer.kernel, layer.stride, layer.kernel // 2
    ours, dense = (
        kind(*geometry, bias=False).to(memory_format=memory_format) for kind in (snn.ChannelConv2d, nn.Conv2d)
    )
    dense.load_state_dict(ours.state_dict())
    reference = dense(x)
    grad = torch.randn_like(reference)
    passes = {
        name: forward_backward(lambda x, _, layer=module: layer(x), [x, module.weight], grad)
        for name, module in ((OURS, ours), (DENSE, dense))
    }
    gradients = []
    for module, party in zip((ours, dense), passes.values(), strict=True):
        party()
        gradients.append([z.grad for z in (x, module.weight) if z.grad is not None])
    require(relative_error(ours(x), reference) <= 1e-5, "both convolve alike")
    for value, truth in zip(*gradients, strict=True):
        require(relative_error(value, truth) <= 1e-5, "both have the same gradients")
    times = max(1, round(4 / min(clock(passes[DENSE]) for _ in range(3))))  # a sample takes 4 ms or more
    return {name: repeated(party, times) for name, party in passes.items()}


def repeated(party: Party, times: int) -> Party:
    def repeat() -> None:
        for _ in range(times):
            party()

    return repeat


def build_busy_machine(other: str) -> dict[str, Party | None]:
    ours, spinning = busy.Steps("ours"), busy.Steps("default")
    if other == "nothing":
        return {OURS: ours.alone, SPINNING: spinning.alone}
    return {OURS: ours.crowded, SPINNING: spinning.crowded, ALONE: ours.alone}


def build_vgg_step(density: float) -> dict[str, Party | None]:
    images = torch.randn(32, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    model = sca.models.build("vgg16", num_classes=10, in_channels=3, time_steps=4, detach_reset=True)
    return training_steps(model, images, density)


def build_dvs_step(density: float) -> dict[str, Party | None]:
    steps, samples, *map_ = EVENT_FRAMES
    counts = torch.poisson(torch.full((steps * samples, *map_), EVENTS_PER_VALUE))
    counts = counts.contiguous(memory_format=torch.channels_last)
    model = sca.models.build(
        "conv5fc1", num_classes=10, in_channels=2, time_steps=steps, image_size=map_[1:], detach_reset=True
    )
    return training_steps(model, counts.unflatten(0, (steps, samples)), density)


def training_steps(model: nn.Module, images: Tensor, density: float) -> dict[str, Party | None]:
    """A training step of a VGG at a density, and of its dense twin."""
    labels = torch.randint(10, (images.shape[-4],))
    twin = spikingjelly_vgg(model, detach_reset=True)
    if twin is not None:
        # Rounding flips a few spikes per layer and batch norm passes that on; the first loss tells a wrong layer apart.
        losses = [mean_loss(net, images, labels).item() for net in (model, twin)]
        require(abs(losses[0] - losses[1]) <= 0.05 * losses[1], f"both networks start at the same loss, {losses}")
    if density < 1:
        prune_evenly(model, density, round_to=16)  # 30.8 % of all channels at 0.3

    def step(net: nn.Module | None) -> Party | None:
        return net and partial(training_step, net, images, labels, sgd(net))

    return {OURS: step(model), SPIKINGJELLY: step(twin)}


def build_saved_bytes() -> dict[str, Party | None]:
    x = spikes_like(4 * 32, *ACTIVATION[2:]).unflatten(0, ACTIVATION[:2]).requires_grad_()
    channels = ACTIVATION[2]
    ours = nn.Sequential(
        snn.ChannelConv2d(channels, channels, 3, padding=1, bias=False, spike_input=True), snn.BatchNormLIF(channels)
    )
    plain = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
    lif = peers.spikingjelly_lif()

    def theirs(x: Tensor) -> Tensor:
        return lif(plain(x.flatten(0, 1)).unflatten(0, x.shape[:2]))

    return {
        OURS: lambda: saved_bytes(lambda: ours(x), list(ours.parameters())) / 2**20,
        SPIKINGJELLY: lif and (lambda: saved_bytes(lambda: theirs(x), list(plain.parameters())) / 2**20),
    }


def build_import() -> dict[str, Party | None]:
    def importing(package: str) -> Party:
        code = f"import time; start = time.perf_counter(); import {package}; print((time.perf_counter() - start) * 1e3)"

        def party() -> float:
            return float(
                subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
            )

        return party

    return {OURS: importing("sca_kernels"), TORCH: importing("torch")}


def returned(party: Party) -> float:
    """The sample of a party that measures itself."""
    return party()


@lru_cache(maxsize=1)
def converted(network: str) -> foreign.Prepared:
    """A foreign network, converted; the last one is kept for its further figures."""
    made = foreign.prepared(foreign.NETWORKS[network])
    require(made.report.parity.differ == 0, "the converted network's spikes are the original's")
    require(
        made.report.parity.exact is None or made.report.parity.exact < 1e-9, "so is all that it computes, in float64"
    )
    return made


def build_foreign(network: str, step: str) -> dict[str, Party | None]:
    if not installed(foreign.NETWORKS[network].package):
        return {OURS: None}
    made, x = converted(network), foreign.NETWORKS[network].example()
    ours = made.pruned if step == PRUNED else made.converted
    parties = {OURS: ours, ORIGINAL: made.original}
    is_training = step != INFERENCE

    def passes(model: nn.Module) -> Party:
        return lambda: 1e3 * seconds_of(model.train(is_training), (x,), is_training)

    return {name: passes(model) for name, model in parties.items()}


def foreign_bars(network: str, step: str) -> list[Bar]:
    """Never slower; a loop over steps twice as fast; with some of the channels half as fast again."""
    loops = foreign.NETWORKS[network].options.get("depth") == "loop"
    least = {TRAINING: 2.0 if loops else 1.0, INFERENCE: 2.0 if loops else 1.0, PRUNED: 1.5}
    return [Bar(ORIGINAL, at_least=least[step])]


def build_epochs(density: float) -> dict[str, Party | None]:
    run = training.cifar10(density)
    return {OURS: run, SPIKINGJELLY: training.spikingjelly_epoch if run and peers.installed("spikingjelly") else None}


def build_two_hours(seed: int) -> dict[str, Party | None]:
    ours = training.two_hours(seed)
    with_peer = ours and peers.installed("spikingjelly")
    return {OURS: ours, SPIKINGJELLY: training.spikingjelly_two_hours if with_peer else None}


def build_recordings(into: str) -> dict[str, Party | None]:
    makers = {OURS: recordings.ours, SPIKINGJELLY: recordings.spikingjelly, TONIC: recordings.tonic}
    return {name: make(into) for name, make in makers.items()}


LAYOUTS = [{"layout": layout} for layout in ("contiguous", "channels_last")]
STEP_BARS = {1.0: 2.5, 0.5: 8.0, 0.3: 16.0}
DVS_BARS = {1.0: 2.0, 0.3: 8.0}
EPOCH_BARS = {1.0: 2.2, 0.5: 6.0, 0.3: 11.0}
# Contiguous, a channel fits into a core's cache between its two passes; channels_last, it does not.
NORM_BARS = {"contiguous": Bar(FIVE, at_most=1.4), "channels_last": Bar(EIGHT, at_most=1.1)}

CASES = {
    case.id: case
    for case in (
        Case(
            "A1",
            f"LIF forward + backward with activity, float32 {list(ACTIVATION)}",
            "ms",
            LAYOUTS,
            build_neuron,
            lambda layout: [Bar(FIVE, at_most=1.15)],
        ),
        Case(
            "A2",
            f"training batch norm + LIF forward + backward, float32 {list(ACTIVATION)}",
            "ms",
            LAYOUTS,
            build_batch_norm_neuron,
            lambda layout: [NORM_BARS[layout]],
        ),
        Case(
            "A3",
            "channel_conv2d 3x3 forward + backward, float32 [128, C, H, H] channels_last, 15 % spikes",
            "ms",
            [
                {"channels": channels, "size": size, "density": density}
                for channels, size in ((64, 32), (128, 16), (256, 8))
                for density in (1.0, 0.75, 0.5, 0.3, 0.1)
            ],
            build_channel_conv,
            lambda channels, size, density: [Bar(DENSE, at_most=min(1.25 * density**2 + 0.03, 1.02))],
        ),
        Case(
            "A4",
            "VGG-16 training step, 32x32 images, T = 4, batch 32, float32",
            "ms",
            [{"density": density} for density in STEP_BARS],
            build_vgg_step,
            lambda density: [Bar(SPIKINGJELLY, at_least=STEP_BARS[density])],
            rounds=15,
            warmup=2,
        ),
        Case(
            "A5",
            f"saved for backward by convolution, batch norm, LIF, float32 {list(ACTIVATION)}",
            "MiB",
            [{}],
            build_saved_bytes,
            lambda: [Bar(SPIKINGJELLY, at_most=0.21)],
            returned,
            rounds=1,
            warmup=0,
        ),
        Case(
            "A6",
            "import, in a fresh interpreter",
            "ms",
            [{}],
            build_import,
            lambda: [Bar(TORCH, at_most=1.1)],
            returned,
            rounds=15,
            warmup=1,
            counted=False,
        ),
        Case(
            "A7",
            f"the paper's DVS network, training step, frames of events {list(EVENT_FRAMES)}, float32",
            "ms",
            [{"density": density} for density in DVS_BARS],
            build_dvs_step,
            lambda density: [Bar(SPIKINGJELLY, at_least=DVS_BARS[density])],
            rounds=15,
            warmup=2,
        ),
        Case(
            "A8",
            "ChannelConv2d, all channels active, forward + backward, float32, 15 % spikes",
            "ms",
            [{"layer": str(layer), **layout} for layer in LAYERS for layout in LAYOUTS],
            build_dense_conv,
            lambda layer, layout: [Bar(DENSE, at_least=0.98)],
            counted=False,
        ),
        Case(
            "A9",
            "training step of `sca train` on digits, two threads on two cores",
            "ms",
            [{"other": "nothing"}, {"other": "one busy process"}],
            build_busy_machine,
            lambda other: [Bar(SPINNING, at_most=1.03) if other == "nothing" else Bar(ALONE, at_most=3.0)],
            returned,
            rounds=15,
            warmup=1,
            counted=False,
        ),
        Case(
            "E1",
            "an epoch of VGG-16 on 5,000 CIFAR-10 images, T = 4, batch 32, float32: median of three by `sca train`",
            "s",
            [{"density": density} for density in EPOCH_BARS],
            build_epochs,
            lambda density: [Bar(SPIKINGJELLY, at_least=EPOCH_BARS[density])],
            returned,
            rounds=1,
            warmup=0,
            counted=False,
        ),
        Case(
            "E2",
            "`sca train` with its defaults, from start to table",
            "s",
            [{"seed": seed} for seed in range(3)],
            lambda seed: {OURS: training.digits(seed)},
            lambda seed: [],
            returned,
            rounds=1,
            warmup=0,
            counted=False,
        ),
        Case(
            "E5",
            "`sca train --preset two_hours`, all of CIFAR-10, VGG-16 at 9.31 % of its connections, to the last epoch; "
            "against steps of the dense twin times the steps of as many epochs, T = 4",
            "s",
            [{"seed": seed} for seed in range(3)],
            build_two_hours,
            lambda seed: [],
            returned,
            rounds=1,
            warmup=0,
            counted=False,
        ),
        Case(
            "E6",
            "`sca train --data nmnist`, 905 + 95 real recordings, from start to table: 30 % of the channels, and dense",
            "s",
            [{"seed": seed} for seed in range(3)],
            lambda seed: {OURS: training.nmnist(seed)},
            lambda seed: [],
            returned,
            rounds=1,
            warmup=0,
            counted=False,
        ),
        Case(
            "E3",
            f"reading and framing of real N-MNIST recordings, T = {recordings.STEPS} frames of equal numbers of events",
            "ms",
            [{"into": into} for into in (recordings.MEMORY, recordings.FILES)],
            build_recordings,
            # tonic's own path ends in memory, epoch by epoch, or in its cache; SpikingJelly's, in files
            lambda into: [Bar(peer, at_least=5.0) for peer in (SPIKINGJELLY, TONIC)[into == recordings.MEMORY :]],
            rounds=15,
            warmup=1,
            counted=False,
        ),
        Case(
            "E4",
            "networks of SpikingJelly, snnTorch and norse as their users write them, by `sca.convert`",
            "ms",
            [{"network": name, "step": step} for name in foreign.NETWORKS for step in (TRAINING, INFERENCE, PRUNED)],
            build_foreign,
            foreign_bars,
            returned,
            rounds=15,
            warmup=2,
        ),
    )
}
