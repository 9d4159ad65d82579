"""How many kernels a GPU is asked to start: those of the Triton backend, counted in Triton's interpreter on the CPU."""

from __future__ import annotations

import pytest
import torch

from benchmarks.launches import CONVOLUTIONS, NEURONS, convolution, counted, neuron
from sca.pruning import optimizer
from sca.structure.groups import Axis
from sca_kernels import functional as F
from sca_kernels import nn

triton_kernels = pytest.importorskip("sca_kernels.triton_kernels", reason="needs Triton (pip install triton)")

pytestmark = [
    pytest.mark.interpreter,
    pytest.mark.skipif(not triton_kernels.INTERPRETED, reason="needs TRITON_INTERPRET=1 when Python starts"),
]

GATHERED = {"gather_kernel": 1, "convolution": 1}, {"convolution_backward": 2, "scatter_kernel": 1}
IMPLICIT = (
    {"gather_kernel": 1, "correlate_kernel": 1},
    {"gather_kernel": 1, "correlate_kernel": 1, "weight_gradient_kernel": 1, "sum": 1, "scatter_kernel": 1},
)
STARTED = {
    "gathered": GATHERED,
    "gathered, autocast": GATHERED,
    "gathered, bias": (GATHERED[0] | {"convolution": 2}, GATHERED[1] | {"convolution_backward": 3}),
    "gathered, bias, autocast": (GATHERED[0] | {"convolution": 2}, GATHERED[1] | {"convolution_backward": 3}),
    "gathered, bits": (GATHERED[0] | {"pack_kernel": 1}, GATHERED[1] | {"unpack_kernel": 1}),
    "gathered, channels_last weight": GATHERED,
    "gathered, outputs alone": GATHERED,
    "depthwise": GATHERED,
    "all channels": ({"convolution": 1}, {"convolution_backward": 2}),
    "all channels, autocast": ({"_to_copy": 1, "convolution": 1}, {"convolution_backward": 2, "_to_copy": 1}),
    "implicit": IMPLICIT,
    "implicit, autocast": IMPLICIT,
}
"""Of each case, forward and backward."""


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_starts_no_more_than_this(name):
    assert convolution(**CONVOLUTIONS[name]) == STARTED[name]


NORM = {"moments_kernel": 1, "forward_kernel": 1}, {"backward_kernel": 2}
LAYERS = {
    "LIF": ({"forward_kernel": 1}, {"backward_kernel": 1}),
    "BN + LIF": NORM,
    "BN + LIF, all channels": NORM,
    "BN + LIF, cumulative average": (NORM[0] | {"add": 1, "_to_copy": 1, "reciprocal": 1}, NORM[1]),
    "BN + PLIF": (NORM[0] | {"sigmoid": 1}, NORM[1] | {"sum": 1, "sigmoid_backward": 1}),
    "BN + LIF, eval": ({"forward_kernel": 1}, {}),
    "conv + BN + LIF": (GATHERED[0] | NORM[0], GATHERED[1] | NORM[1]),
    "conv + BN + LIF, bfloat16": (GATHERED[0] | NORM[0], GATHERED[1] | NORM[1]),
}
"""Of each case, forward and backward, with running statistics, the count of batches and activity."""


@pytest.mark.parametrize("name", NEURONS)
def test_a_layer_of_neurons_starts_no_more_than_this(name):
    assert neuron(**NEURONS[name]) == LAYERS[name]


def test_the_thirteen_layers_of_vgg16_start_no_more_than_160():
    forward, backward = (sum(each.values()) for each in LAYERS["conv + BN + LIF, bfloat16"])
    assert 13 * (forward + backward) <= 160


def test_active_blocks_are_read_by_one_launch_and_written_by_one():
    rows, columns = torch.tensor([0, 2, 6]), torch.tensor([1, 4])
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = torch.randn(8, 8, 3, 3).contiguous(memory_format=layout)
        with counted() as reading:
            block = F.gather_weight(weight, columns, rows, backend="triton")
        with counted() as writing:
            F.put_weight(block, weight, columns, rows, backend="triton")
        assert (reading, writing) == ({"gather_kernel": 1}, {"index_put_": 1})


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_an_optimizer_reads_and_writes_each_tensor_of_a_parameter_by_one_launch(monkeypatch, layout):
    """As on a GPU, by flat positions, which are made once per structure."""
    monkeypatch.setattr(optimizer._Block, "_is_weight", lambda self, full: False)
    group = nn.ChannelGroup(8)
    group.set_active([0, 2, 6])
    p = torch.nn.Parameter(torch.randn(8, 8, 3, 3).contiguous(memory_format=layout))
    block = optimizer._Block(p, (Axis(group, 0), Axis(group, 1)), (0, 0))
    compact = block.read(p.detach())
    with counted() as reading:
        block.read(p.detach())
    with counted() as writing:
        block.write(p.detach(), compact)
    assert (reading, writing) == ({"index_select": 1}, {"scatter_": 1})


def test_what_starts_nothing_is_not_counted_and_what_is_made_of_others_by_its_parts():
    x = torch.randn(4, 6)
    with counted() as seen:
        x.view(6, 4).t().unsqueeze(0).contiguous()
        torch.empty(3).new_empty(2)
        x.to(torch.float32)
        torch.nn.functional.linear(x, x).to(torch.bfloat16)
    assert seen == {"clone": 1, "mm": 1, "_to_copy": 1}
