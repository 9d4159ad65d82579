"""torch's counter of floating-point operations sees our convolutions, at their active width."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sca_kernels import nn


def counted(module, x):
    """Of a forward pass, and of both passes."""
    with FlopCounterMode(display=False) as counter:
        y = module(x.clone().requires_grad_())
        forward = counter.get_total_flops()
        y.sum().backward()
    return forward, counter.get_total_flops()


@pytest.mark.parametrize("geometry", [{}, {"stride": 2, "padding": 1}, {"dilation": 2}], ids=str)
@pytest.mark.parametrize("path", [None, "winograd"])
def test_a_dense_convolution_counts_as_torchs(geometry, path):
    if path and geometry:
        pytest.skip("winograd has stride and dilation 1")
    x = torch.randn(2, 8, 9, 9).contiguous(memory_format=torch.channels_last)
    ours, torchs = nn.ChannelConv2d(8, 8, 3, path=path, **geometry), torch.nn.Conv2d(8, 8, 3, **geometry)
    assert counted(ours, x) == counted(torchs, x)


def test_a_pruned_convolution_counts_as_the_narrow_one():
    inputs, outputs = nn.ChannelGroup(8), nn.ChannelGroup(8)
    inputs.set_active([0, 3, 4])
    outputs.set_active([1, 5])
    ours = nn.ChannelConv2d(8, 8, 3, in_group=inputs, out_group=outputs)
    x = torch.randn(2, 3, 9, 9)
    assert counted(ours, x) == counted(torch.nn.Conv2d(3, 2, 3), x)


@pytest.mark.parametrize("active", [[0, 3, 4], list(range(8))], ids=["pruned", "dense"])
def test_a_depthwise_convolution_counts_its_own_products(active):
    """torch's formula of the weight's gradient multiplies by the groups once too often: forward passes are compared."""
    group = nn.ChannelGroup(8)
    group.set_active(active)
    n = len(active)
    x = torch.randn(2, n, 9, 9)
    forward, both = counted(nn.ChannelConv2d(8, 8, 3, in_group=group, out_group=group, groups=8, path="gathered"), x)
    assert forward == counted(torch.nn.Conv2d(n, n, 3, groups=n), x)[0]
    assert both == 3 * forward


@pytest.mark.parametrize("first", ["sca_kernels.functional", "torch.utils.flop_counter"])
def test_formulas_are_registered_whoever_is_imported_first(first):
    second = {"sca_kernels.functional", "torch.utils.flop_counter"} - {first}
    code = (
        f"import sys, {first}, {second.pop()}\n"
        "from torch.utils.flop_counter import flop_registry\n"
        "import torch, sca_kernels.functional\n"
        "assert torch.ops.sca_kernels.channel_conv2d in flop_registry\n"
        "assert torch.ops.sca_kernels.channel_conv2d_backward in flop_registry"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    alone = "import sys, sca_kernels.functional; assert 'torch.utils.flop_counter' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", alone], check=False).returncode == 0
