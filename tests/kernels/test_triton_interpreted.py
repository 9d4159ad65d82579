"""What the Triton kernels read and write, counted while Triton's interpreter runs them: the fewest bytes there are.

In a process of their own: TRITON_INTERPRET=1."""

from __future__ import annotations

from collections import Counter

import numpy
import pytest
import torch

from sca_kernels.functional import check_neuron
from sca_kernels.testing import activation

triton = pytest.importorskip("triton", reason="needs Triton (pip install triton)")

import triton.language as tl  # noqa: E402  after importorskip
from triton.runtime.interpreter import InterpreterBuilder  # noqa: E402

from sca_kernels import triton_kernels  # noqa: E402
from sca_kernels.channels import Channels  # noqa: E402
from sca_kernels.gpu import batch_norm, neuron  # noqa: E402
from sca_kernels.gpu.neuron import Current  # noqa: E402
from sca_kernels.gpu.plan import Plan  # noqa: E402
from sca_kernels.triton_kernels import bitpack, launcher, weights  # noqa: E402
from sca_kernels.triton_kernels.finish import finished_sum  # noqa: E402

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(not triton_kernels.INTERPRETED, reason="needs TRITON_INTERPRET=1 when Python starts"),
]

CONFIG = check_neuron("lif", 2.0, 1.0, 0.0, True, False, "atan", None)


class Traffic:
    """Elements loaded and stored, by address."""

    def __init__(self) -> None:
        self.loaded: Counter[int] = Counter()
        self.stored: Counter[int] = Counter()

    def times(self, tensor: torch.Tensor) -> tuple[set[int], set[int]]:
        """How often the elements of a dense tensor were loaded, and stored: one number each if all alike."""
        addresses = range(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes, tensor.element_size())
        return {self.loaded[a] for a in addresses}, {self.stored[a] for a in addresses}


@pytest.fixture
def traffic(monkeypatch):
    """Watches every load and store of the interpreter."""
    seen = Traffic()
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def count(into: Counter, pointers, mask) -> None:
        pointers, mask = numpy.broadcast_arrays(pointers.data, mask.data)
        into.update(pointers[mask.astype(bool)].tolist())

    def masked_load(self, ptrs, mask, *rest):
        count(seen.loaded, ptrs, mask)
        return load(self, ptrs, mask, *rest)

    def masked_store(self, ptrs, value, mask, *rest):
        count(seen.stored, ptrs, mask)
        return store(self, ptrs, value, mask, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", masked_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", masked_store)
    return seen


ONCE, NEVER = {1}, {0}
INPUTS = pytest.mark.parametrize(
    ("shape", "channels_last"),
    [((4, 3, 5, 7, 9), False), ((4, 3, 13, 5, 3), True), ((4, 5, 6, 3, 3), False)],
    ids=["planes", "channels_last", "small maps"],
)


@INPUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_neuron_reads_x_once_and_writes_spikes_once(traffic, shape, channels_last, dtype):
    x = activation(shape, dtype, channels_last)
    current = Current()
    spikes, *_ = neuron.forward(launcher, x, 4, CONFIG, current, None, False)
    assert traffic.times(x) == (ONCE, NEVER)
    assert traffic.times(spikes) == (NEVER, ONCE)
    # Nothing else of the size of an activation: beside it stand the sums of each program, and their total.
    others = traffic.loaded.total() + traffic.stored.total() - 2 * x.numel()
    tiles = Plan(launcher.tile_size, x, 4).tiles
    assert others <= 2 * 2 * 2 * 64 * (tiles.programs + tiles.counters) + 2 * shape[2]


@INPUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_its_backward_reads_x_and_the_gradient_once_and_writes_once(traffic, shape, channels_last, dtype):
    x, grad = (activation(shape, dtype, channels_last) for _ in range(2))
    current = Current()
    g_x, *_ = neuron.backward(launcher, grad, None, x, 4, CONFIG, current)
    assert traffic.times(x) == traffic.times(grad) == (ONCE, NEVER)
    assert traffic.times(g_x) == (NEVER, ONCE)
    assert traffic.loaded.total() + traffic.stored.total() == 3 * x.numel()


@INPUTS
def test_batch_norm_reads_x_once_more_for_its_statistics(traffic, shape, channels_last):
    x = activation(shape, channels_last=channels_last)
    (spikes, *_), _ = batch_norm.forward(launcher, x, 4, CONFIG, None, None, 1e-5, None, None, None, False)
    assert traffic.times(spikes) == (NEVER, ONCE)
    # Of the first step, each program of the statistics reads its first element of a column once more.
    assert traffic.times(x[1:]) == ({2}, NEVER)


@INPUTS
def test_batch_norms_backward_reads_twice_and_writes_once(traffic, shape, channels_last):
    x, grad = (activation(shape, channels_last=channels_last) for _ in range(2))
    norm, weight = torch.ones(4, shape[2]), torch.ones(shape[2])
    g_x, *_ = batch_norm.backward(launcher, grad, None, x, 4, CONFIG, weight, None, norm, 1e-5, None, None)
    assert traffic.times(x) == traffic.times(grad) == ({2}, NEVER)
    assert traffic.times(g_x) == (NEVER, ONCE)


def test_one_step_presented_many_times_is_read_once(traffic):
    x = activation((1, 3, 5, 7, 9))
    spikes, *_ = neuron.forward(launcher, x, 4, CONFIG, Current(), None, False)
    assert traffic.times(x) == (ONCE, NEVER)
    assert traffic.times(spikes) == (NEVER, ONCE)


def test_long_sequences_read_x_twice_in_the_backward_and_keep_one_potential_per_chunk(traffic):
    """Beyond the steps whose potentials the registers hold: a pass for v at the start of each chunk, and one back."""
    x, grad = (activation((20, 1, 3, 4, 16)) for _ in range(2))
    g_x, *_ = neuron.backward(launcher, grad, None, x, 20, CONFIG, Current())
    assert traffic.times(grad) == (ONCE, NEVER)
    assert traffic.times(g_x) == (NEVER, ONCE)
    # All but the last chunk, whose potentials the first pass does not need.
    last = x[18:]
    assert traffic.times(last) == (ONCE, NEVER)
    assert traffic.times(x[:18]) == ({2}, NEVER)


def test_packing_reads_and_writes_every_byte_once(traffic):
    spikes = (torch.rand(5000) < 0.3).float()
    packed = bitpack.pack(spikes)
    assert traffic.times(spikes) == (ONCE, NEVER)
    assert traffic.times(packed) == (NEVER, ONCE)
    unpacked = bitpack.unpack(packed, 5000, torch.float32)
    assert traffic.times(packed) == (ONCE, ONCE)
    assert traffic.times(unpacked)[1] == ONCE
    assert torch.equal(unpacked, spikes)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("inputs", [None, [1, 2, 4]], ids=["all inputs", "some inputs"])
def test_active_entries_of_a_weight_are_read_once_and_its_gradient_is_written_once(traffic, layout, inputs):
    outputs = torch.tensor([0, 3, 8])
    weight, bias = torch.randn(9, 5, 3, 3).contiguous(memory_format=layout), torch.randn(9)
    channels = Channels(None if inputs is None else torch.tensor(inputs), outputs)
    block, bias_block = weights.gather(weight, bias, channels, torch.float32)
    g_weight, g_bias = weights.scatter(block, bias_block, weight, channels)
    for z in (block, bias_block):
        assert traffic.times(z) == (ONCE, ONCE)
    for z in (g_weight, g_bias):
        assert traffic.times(z) == (NEVER, ONCE)
    for full, gradient in ((weight, g_weight), (bias, g_bias)):
        for value, address in zip(gradient.flatten().tolist(), addresses(full), strict=True):
            assert traffic.loaded[address] == (value != 0)


def addresses(z):
    """Of a float32 tensor's elements, in the order of its indices."""
    at = sum(n * s for n, s in zip(torch.meshgrid(*map(torch.arange, z.shape), indexing="ij"), z.stride(), strict=True))
    return (z.data_ptr() + 4 * at).flatten().tolist()


@triton.jit
def counts_kernel(partials, counts, stripes, splits, SLOTS: tl.constexpr):
    """What a program that finishes makes of the counts of all others."""
    channel = tl.program_id(0).to(tl.int64) * SLOTS + tl.arange(0, SLOTS)
    count = finished_sum(partials, 0, channel, channel >= 0, stripes, splits, splits, 1, False, SLOTS, SLOTS)
    tl.store(counts + channel, count.to(tl.int64))


@pytest.mark.parametrize("slots", [1, 16], ids=["planes", "interleaved"])
def test_counts_beyond_32_bits_are_exact(slots):
    """checklist: counts above 2^24 and 2^31; here as the sums that programs hand to the one that finishes."""
    torch.manual_seed(0)
    stripes, splits = 3, 700
    partials = torch.randint(2**30, 2**31, (splits, stripes * slots)).double()
    counts = torch.empty(stripes * slots, dtype=torch.int64)
    counts_kernel[(stripes,)](partials, counts, stripes, splits, SLOTS=slots)
    assert torch.equal(counts, partials.long().sum(0))
    assert counts.min() > 2**31
