"""nn.MaxPool2d and nn.AvgPool2d: torch's values and gradients, bit for bit, without their input."""

from __future__ import annotations

import copy

import pytest
import torch

from sca_kernels import nn

ANY = {"kernel_size": (3, 2), "stride": (2, 1), "padding": 1, "ceil_mode": True}
CASES = {
    "max": ("MaxPool2d", {"kernel_size": 2}),
    "max, any geometry": ("MaxPool2d", {**ANY, "dilation": (1, 2)}),
    "avg": ("AvgPool2d", {"kernel_size": 2}),
    "avg, any geometry": ("AvgPool2d", ANY),
    "avg, of the map alone": ("AvgPool2d", {**ANY, "count_include_pad": False}),
    "avg, another divisor": ("AvgPool2d", {**ANY, "divisor_override": 5}),
}
SAVED = {"MaxPool2d": [torch.int64], "AvgPool2d": []}

each_case = pytest.mark.parametrize(("name", "arguments"), CASES.values(), ids=CASES)


def pools(name: str, arguments: dict) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Ours and torch's."""
    return getattr(nn, name)(**arguments), getattr(torch.nn, name)(**arguments)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("samples", [3, 0])
@each_case
def test_pool_equals_torch_and_keeps_no_activation(name, arguments, samples, dtype, layout):
    pool, twin = pools(name, arguments)
    x = (torch.rand(samples, 5, 7, 8) < 0.3).to(dtype).contiguous(memory_format=layout).requires_grad_()
    truth = copy.deepcopy(x)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda z: saved.append(z.dtype) or z, lambda z: z):
        y = pool(x)
    expected = twin(truth)
    grad = torch.randn_like(expected)
    y.backward(grad)
    expected.backward(grad)
    assert saved == SAVED[name]
    assert torch.equal(y, expected)
    assert torch.equal(x.grad, truth.grad)
    assert y.stride() == expected.stride()
    assert x.grad.stride() == truth.grad.stride()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@each_case
def test_pool_equals_torch_where_nothing_is_recorded(name, arguments, mode):
    pool, twin = pools(name, arguments)
    x = torch.randn(5, 7, 8, requires_grad=True)
    with mode():
        y = pool(x)
        assert torch.equal(y, twin(x))
    assert not y.requires_grad


@each_case
def test_pool_says_of_itself_what_torch_says(name, arguments):
    pool, twin = pools(name, arguments)
    assert repr(pool) == repr(twin)
    assert isinstance(pool, type(twin))


def test_max_pool_gives_its_indices_where_they_are_asked_for():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    y, indices = nn.MaxPool2d(2, return_indices=True)(x)
    expected, places = torch.nn.functional.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(y, expected)
    assert torch.equal(indices, places)
