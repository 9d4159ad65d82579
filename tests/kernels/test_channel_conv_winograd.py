"""The Winograd path of the channel-sparse convolution: every size and padding, both layouts of the weight, floats and
bits, against float64 convolutions."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from sca_kernels import functional as F
from sca_kernels import nn, paths
from sca_kernels.backends import registry
from sca_kernels.testing import poisoned_memory, relative_l2

BACKEND = registry()["cpu"]
pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif("winograd" not in BACKEND.paths, reason="needs the compiled CPU kernels, and AVX2"),
]


def frames(*shape, layout=torch.channels_last):
    return (torch.rand(shape) < 0.3).float().contiguous(memory_format=layout)


def run(x, weight, bias, grad=None, **arguments):
    """y and the gradients of x, weight and bias."""
    leaves = [None if z is None else z.detach().requires_grad_() for z in (x, weight, bias)]
    y = F.channel_conv2d(*leaves, **arguments)
    torch.manual_seed(1)
    y.backward(torch.randn(y.shape, dtype=torch.float64).to(y.dtype) if grad is None else grad)
    return {
        "y": y.detach(),
        **{n: z.grad for n, z in zip(("x", "weight", "bias"), leaves, strict=True) if z is not None},
    }


def in_float64(x, weight, bias, **arguments):
    arguments = {name: value for name, value in arguments.items() if name not in ("path", "spike_input")}
    return run(x.double(), weight.double(), None if bias is None else bias.double(), **arguments)


def assert_close(ours, truth, bound=1e-6):
    for name, expected in truth.items():
        assert relative_l2(ours[name], expected) <= bound, name


SIZES = {  # images, input channels, output channels, height, width
    "one of everything": (1, 1, 1, 1, 1),
    "one position": (3, 13, 9, 1, 1),
    "a row": (2, 5, 17, 1, 9),
    "odd maps": (3, 13, 19, 7, 5),
    "whole lines": (2, 32, 48, 8, 8),
    "more tiles than one batch": (9, 3, 40, 18, 16),
    "a line and one": (4, 17, 33, 6, 3),
    "no image": (0, 4, 5, 6, 6),
}


@pytest.mark.parametrize("spike_input", [False, True], ids=["saved whole", "saved as bits"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["weight as is", "weight last"])
@pytest.mark.parametrize("size", SIZES)
def test_convolution_and_gradients_equal_the_float64_ones(size, layout, spike_input):
    images, inputs, outputs, height, width = SIZES[size]
    x = frames(images, inputs, height, width)
    weight = torch.randn(outputs, inputs, 3, 3).contiguous(memory_format=layout)
    arguments = {"padding": 1, "path": "winograd", "spike_input": spike_input}
    with poisoned_memory():
        ours = run(x, weight, torch.randn(outputs, generator=torch.Generator().manual_seed(2)), **arguments)
    truth = in_float64(x, weight, torch.randn(outputs, generator=torch.Generator().manual_seed(2)), **arguments)
    assert_close(ours, truth)
    assert ours["y"].is_contiguous(memory_format=torch.channels_last)
    assert ours["x"].is_contiguous(memory_format=torch.channels_last)
    assert ours["weight"].stride() == weight.stride()


@pytest.mark.parametrize("padding", [0, 2, (0, 1), (2, 0)], ids=str)
def test_padding_and_no_bias(padding):
    x, weight = frames(2, 6, 5, 8), torch.randn(7, 6, 3, 3)
    arguments = {"padding": padding, "path": "winograd"}
    assert_close(run(x, weight, None, **arguments), in_float64(x, weight, None, **arguments))


@pytest.mark.parametrize("full", [False, True], ids=["active width", "full width"])
def test_active_channels_alone_and_dormant_gradients_exactly_zero(full):
    inputs, outputs = torch.tensor([0, 2, 3, 7, 20]), torch.tensor([1, 4, 18])
    x, weight, bias = frames(3, 21 if full else 5, 6, 6), torch.randn(19, 21, 3, 3), torch.randn(19)
    arguments = {"padding": 1, "in_channels": inputs, "out_channels": outputs, "full_input": full, "full_output": full}
    ours = run(x, weight, bias, path="winograd", **arguments)
    assert_close(ours, in_float64(x, weight, bias, **arguments))
    kept = torch.zeros(19, 21, dtype=torch.bool)
    kept[outputs[:, None], inputs] = True
    assert not ours["weight"][~kept].any()
    assert ours["weight"][kept].any()


def test_numbers_that_are_no_spikes_and_gradients_in_another_layout():
    x, weight = torch.randn(3, 8, 7, 7).contiguous(memory_format=torch.channels_last), torch.randn(12, 8, 3, 3)
    for grad in (torch.randn(3, 12, 5, 5), torch.randn(1, 1, 1, 1).expand(3, 12, 5, 5)):
        ours = run(x, weight, None, grad, path="winograd")
        assert_close(ours, run(x.double(), weight.double(), None, grad.double()))


def test_bits_and_floats_give_the_same_gradients_and_so_does_any_number_of_threads():
    x, weight = frames(5, 27, 9, 10), torch.randn(20, 27, 3, 3)
    truth = run(x, weight, None, padding=1, path="winograd")
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            for spike_input in (False, True):
                ours = run(x, weight, None, padding=1, path="winograd", spike_input=spike_input)
                assert all(torch.equal(ours[name], truth[name]) for name in truth), (number, spike_input)
    finally:
        torch.set_num_threads(threads)


def test_silent_channels_change_no_bit():
    # Channels are added in their order: what is zero in a wide layer adds nothing to what a narrow one computes.
    x, weight, index = frames(2, 40, 8, 8), torch.randn(24, 40, 3, 3), torch.arange(1, 40, 3)
    silent = torch.ones(40, dtype=torch.bool).index_fill_(0, index, False)
    masked = F.channel_conv2d(x.clone().index_fill_(1, silent.nonzero()[:, 0], 0), weight, padding=1, path="winograd")
    narrow = F.channel_conv2d(x, weight, padding=1, in_channels=index, full_input=True, path="winograd")
    assert torch.equal(narrow, masked)


def test_long_sums_are_as_exact_as_short_ones():
    x, weight = frames(16, 4, 64, 64), torch.randn(8, 4, 3, 3)
    ours = run(x, weight, None, padding=1, path="winograd", spike_input=True)
    assert_close(ours, in_float64(x, weight, None, padding=1), 5e-7)


def test_it_is_the_default_where_it_was_measured_and_nowhere_else():
    weight, x = torch.randn(32, 32, 3, 3), frames(2, 32, 8, 8)
    default, named = (F.channel_conv2d(x, weight, padding=1, path=path) for path in (None, "winograd"))
    assert torch.equal(default, named)
    assert nn.explain(nn.ChannelConv2d(32, 32, 3))[0].path == "winograd"
    for other in (
        nn.ChannelConv2d(32, 32, 3, stride=2),
        nn.ChannelConv2d(32, 32, 3, dilation=2),
        nn.ChannelConv2d(32, 32, 5),
        nn.ChannelConv2d(32, 32, 3, groups=32),
        nn.ChannelConv2d(32, 32, 3, padding=3),
        nn.ChannelConv2d(3, 32, 3),
        nn.ChannelConv2d(32, 32, 3).bfloat16(),
    ):
        assert nn.explain(other)[0].path == "dense", other
    assert "64 channels and 512 positions" in nn.explain(nn.ChannelConv2d(32, 32, 3))[0].why
    few = frames(1, 32, 8, 8)
    assert torch.equal(F.channel_conv2d(few, weight, padding=1), torch.conv2d(few, weight, padding=1))
    contiguous = x.contiguous()
    assert torch.equal(F.channel_conv2d(contiguous, weight, padding=1), torch.conv2d(contiguous, weight, padding=1))
    lines = frames(256, 32, 1, 8)
    assert torch.equal(F.channel_conv2d(lines, weight, padding=1), torch.conv2d(lines, weight, padding=1))


@pytest.mark.parametrize("spike_input", [False, None, True], ids=["saved whole", "found out", "saved as bits"])
def test_what_is_contiguous_is_copied_to_channels_last_and_back(spike_input):
    x, weight = frames(8, 64, 8, 8, layout=torch.contiguous_format), torch.randn(64, 64, 3, 3)
    ours = run(x, weight, None, padding=1, spike_input=spike_input)
    last = run(x.contiguous(memory_format=torch.channels_last), weight, None, padding=1, path="winograd")
    assert all(torch.equal(ours[name], last[name]) for name in last)
    assert ours["y"].is_contiguous()
    assert ours["x"].is_contiguous()
    few = x[:7]
    y = F.channel_conv2d(few, weight, padding=1)
    assert torch.equal(y, torch.conv2d(few, weight, padding=1))
    reference = F.channel_conv2d(x, weight, padding=1, backend="reference")
    assert torch.equal(reference, torch.conv2d(x, weight, padding=1))


def test_named_it_takes_any_layout():
    x, weight = frames(2, 8, 5, 5, layout=torch.contiguous_format), torch.randn(6, 8, 3, 3)
    y = F.channel_conv2d(x, weight, path="winograd")
    assert y.is_contiguous()
    assert relative_l2(y, torch.conv2d(x.double(), weight.double())) <= 1e-6


@pytest.mark.parametrize(
    ("x", "weight", "arguments"),
    [
        (frames(2, 8, 5, 5), torch.zeros(8, 8, 3, 3), {"stride": 2}),
        (frames(2, 8, 5, 5), torch.zeros(8, 8, 5, 5), {}),
        (frames(2, 8, 5, 5).bfloat16(), torch.zeros(8, 8, 3, 3).bfloat16(), {}),
    ],
    ids=["stride", "kernel", "bfloat16"],
)
def test_what_it_cannot_take_is_an_error(x, weight, arguments):
    with pytest.raises(ValueError, match="path: 'winograd' expected a float32 3x3 convolution"):
        F.channel_conv2d(x, weight, path="winograd", **arguments)


def test_a_map_smaller_than_the_kernel_is_an_error_as_in_torch():
    with pytest.raises((ValueError, RuntimeError)):
        F.channel_conv2d(frames(2, 16, 2, 2), torch.zeros(16, 16, 3, 3), path="winograd")


@pytest.mark.parametrize("isa", ["avx2"])
def test_other_instruction_sets(isa):
    test = f"{__file__}::{test_convolution_and_gradients_equal_the_float64_ones.__name__}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
        env={**os.environ, "SCA_KERNELS_CPU_ISA": isa},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout


def test_rules_speak_of_the_paths_that_are_there():
    assert {rule.path for rules in paths.RULES.values() for rule in rules} <= set(paths.NEEDS)
