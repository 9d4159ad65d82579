"""What a network keeps for its backward pass: a block's bytes counted, active widths throughout, checkpointing."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch

from benchmarks import ranks
from sca import models
from sca.bench.memory import allocated, saved_bytes
from sca.models.vgg import ConvBlock
from sca.structure.groups import find_groups
from sca.training.firing import FiringRate
from sca.training.precision import autocast
from sca_kernels import nn as snn
from sca_kernels.backends import registry

T, N, SIZE = 3, 2, 8


def block(pool: torch.nn.Module) -> tuple[ConvBlock, torch.Tensor]:
    """A block with 5 of 8 input and 6 of 12 output channels active, and spikes for it."""
    before, behind = snn.ChannelGroup(8), snn.ChannelGroup(12)
    before.set_active(range(5))
    behind.set_active(range(0, 12, 2))
    conv = snn.ChannelConv2d(8, 12, 3, padding=1, bias=False, in_group=before, out_group=behind, spike_input=True)
    spikes = (torch.rand(T, N, 5, SIZE, SIZE) < 0.2).float().requires_grad_()
    return ConvBlock(conv, snn.BatchNormLIF(12, group=behind), pool=pool), spikes


@pytest.mark.parametrize("pool", [torch.nn.Identity(), snn.MaxPool2d(2), snn.AvgPool2d(2)], ids=["plain", "max", "avg"])
def test_block_saves_its_input_as_bits_the_neurons_current_and_a_max_pools_indices(pool):
    module, spikes = block(pool)
    pixels = T * N * SIZE**2
    bits, current = pixels * 5 // 8, pixels * 6 * 4
    indices = pixels // 4 * 6 * 8 if isinstance(pool, snn.MaxPool2d) else 0
    weights = 6 * 5 * 9 * 4  # of active channels alone
    vectors = 4 * 6 * 4 + (5 + 6) * 8  # mean, variance, scale, shift; the two lists of active channels
    expected = bits + current + indices + weights + vectors
    assert saved_bytes(lambda: module(spikes), list(module.parameters())) == expected


def test_no_full_width_tensor_stands_between_the_modules_of_a_pruned_network():
    model = models.build("vgg9", in_channels=2, image_size=16, width=0.125, num_classes=3)
    groups = [members.group for members in find_groups(model).values()]
    for group in groups:
        group.set_active(range(group.num_channels // 2 - 1))  # no other layer's width
    seen = []

    def widths(module, inputs, output):
        if isinstance(module, torch.nn.Conv2d | torch.nn.MaxPool2d):
            seen.append((inputs[0].shape[1], output.shape[1]))
        elif isinstance(module, torch.nn.Linear) or hasattr(module, "activity"):
            seen.append((inputs[0].shape[2], output.shape[2]))

    for module in model.modules():
        module.register_forward_hook(widths)
    model(torch.randn(2, 2, 16, 16)).sum().backward()
    between = [width for pair in seen for width in pair][1:-1]  # but the image's and the logits'
    positions = 2 * 2  # that the flattened maps of the last convolution have
    active = {g.num_active for g in groups} | {groups[-2].num_active * positions}
    assert len(between) == 2 * (7 + 7 + 3 + 2 + 1) - 2
    assert set(between) <= active
    assert not set(between) & {g.num_channels for g in groups}


@pytest.fixture(params=[False, True], ids=["still", "sequence"])
def images(request) -> torch.Tensor:
    x = torch.randn(3, 2, 16, 16).contiguous(memory_format=torch.channels_last)
    return x.expand(4, -1, -1, -1, -1) if request.param else x


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("pruned", [False, True], ids=["dense", "pruned"])
@pytest.mark.parametrize("name", ["vgg9", "conv5fc1", "resnet20", "preresnet20", "sew_resnet18"])  # of each family
def test_checkpointing_changes_no_bit_of_training(images, name, pruned, precision):
    plain = models.build(name, in_channels=2, image_size=16, width=0.25, num_classes=3)
    again = models.build(**plain.config | {"checkpointing": True})
    again.load_state_dict(plain.state_dict())
    results = []
    for model in (plain, again):
        if pruned:
            for members in find_groups(model).values():
                members.group.set_active(range(0, members.group.num_channels, 2))
        rate = FiringRate(model)
        with autocast(precision, "cpu"):
            logits = model(images)
        logits.float().square().sum().backward()
        gradients = [p.grad for p in model.parameters()]
        neurons = [m.activity for m in model.modules() if getattr(m, "activity", None)]
        sums = [value for a in neurons for value in (a.spike_count, a.membrane_l1, a.positions)]
        assert rate.since_mark()[0] > 0
        results.append([logits, *gradients, *sums, *model.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_checkpointing_keeps_a_bit_per_spike_between_blocks(images):
    """Held behind the forward pass: a tenth, since float currents and pool indices are gone."""
    plain = models.build("vgg9", in_channels=2, image_size=16, width=0.25, num_classes=3)
    again = models.build(**plain.config | {"checkpointing": True})
    held = [allocated(lambda model=model: model(images)).held for model in (plain, again)]
    frames = 4 * 3
    sides = [16, 16, 8, 8, 4, 4, 4]  # of the blocks' inputs
    spikes = frames * sum(g.out_channels * s**2 for g, s in zip(convolutions(again), [*sides[1:], 2], strict=True))
    assert held[1] < held[0] / 10
    assert spikes / 8 <= held[1]


def convolutions(model: torch.nn.Module) -> list[torch.nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]


def test_checkpointing_does_nothing_where_no_gradient_is_wanted():
    model = models.build("vgg5", in_channels=2, image_size=8, width=0.125, checkpointing=True).eval()
    plain = copy.deepcopy(model)
    plain.checkpointing = False
    x = torch.randn(2, 2, 8, 8)
    with torch.inference_mode():
        assert torch.equal(model(x), plain(x))


def test_checkpointing_refuses_neurons_that_keep_their_state():
    with pytest.raises(ValueError, match="checkpointing: expected False beside stateful=True"):
        models.build("vgg5", checkpointing=True, stateful=True)


def test_allocated_counts_the_peak_and_what_is_held():
    def work():
        first = torch.empty(3, 2**20, dtype=torch.uint8)
        second = torch.empty(2, 2**20, dtype=torch.uint8)
        del first
        return second

    assert allocated(work) == (5 * 2**20, 2 * 2**20)


@pytest.mark.native
def test_batch_norm_over_ranks_takes_next_to_no_memory():
    """Of each process, against one alone with the same batch; what it shares are sums per channel."""
    can, why_not = registry()["cpu"].supports(torch.device("cpu"), torch.bfloat16)
    if not (can and torch.distributed.is_available()):
        pytest.skip(f"backend cpu: {why_not}" if not can else "torch without distributed")
    ways = ("one process", "two, batch norm over both")
    alone, shared = (ranks.peak(way, 6, "bfloat16", name="vgg9", width=0.25) for way in ways)
    assert alone < shared <= 1.02 * alone


LOOP = """
import gc, sys, tracemalloc, torch, sca
from sca_kernels import functional as F
torch.set_num_threads(1)
tracemalloc.start()
model = sca.models.build("vgg5", width=0.125, image_size=8)
optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
scheduler = sca.SCAScheduler(model, optimizer, start=20, stop=80, interval=20, density=0.5, regrow="random")
images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)

def held():
    gc.collect()
    with open("/proc/self/statm") as file:
        return len(gc.get_objects()), tracemalloc.get_traced_memory()[0], int(file.read().split()[1]) * 4096

for step in range(300):  # what is kept of neurons' configurations is full
    F.lif(images[None], tau=1000.0 + step)
for step in range(500):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(images).mean(0), labels).backward()
    optimizer.step()
    scheduler.step()
    F.lif(images[None], tau=2.0 + step)  # a neuron that nobody has seen before
    if step == 199:
        before = held()
print(*(after - was for was, after in zip(before, held())))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_flat_over_training_steps():
    """Objects, Python's memory and the process', over 300 steps and as many neuron configurations."""
    done = subprocess.run([sys.executable, "-c", LOOP], check=True, capture_output=True, text=True)
    objects, traced, resident = map(int, done.stdout.split())
    assert objects < 20
    assert traced < 40 * 2**10
    assert resident < 2 * 2**20  # what malloc scatters; activations kept per step would be 10 MiB
