"""nn.MaxPool2d: torch's values and gradients, bit for bit, without its input."""

from __future__ import annotations

import copy

import pytest
import torch

from sca_kernels import nn


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "arguments",
    [{"kernel_size": 2}, {"kernel_size": (3, 2), "stride": (2, 1), "padding": 1, "ceil_mode": True}],
    ids=["plain", "any geometry"],
)
def test_max_pool_equals_torch_and_keeps_only_indices(arguments, dtype, layout):
    x = (torch.rand(3, 5, 7, 8) < 0.3).to(dtype).contiguous(memory_format=layout).requires_grad_()
    truth = copy.deepcopy(x)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda z: saved.append(z.dtype) or z, lambda z: z):
        y = nn.MaxPool2d(**arguments)(x)
    expected = torch.nn.MaxPool2d(**arguments)(truth)
    grad = torch.randn_like(expected)
    y.backward(grad)
    expected.backward(grad)
    assert saved == [torch.int64]
    assert torch.equal(y, expected)
    assert torch.equal(x.grad, truth.grad)
    assert y.stride() == expected.stride()
    assert x.grad.stride() == truth.grad.stride()


def test_max_pool_gives_its_indices_where_they_are_asked_for():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y, indices = nn.MaxPool2d(2, return_indices=True)(x)
    expected, places = torch.nn.functional.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(y, expected)
    assert torch.equal(indices, places)
