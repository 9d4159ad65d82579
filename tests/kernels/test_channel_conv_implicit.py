"""The implicit path of the channel-sparse convolution against float64 convolutions of gathered tensors."""

from __future__ import annotations

import pytest
import torch

from sca_kernels import functional as F
from sca_kernels import nn
from sca_kernels.backends import registry
from sca_kernels.testing import poisoned_memory, relative_l2


def able() -> list:
    """(backend, device) pairs that have kernels for this path."""
    pairs = [
        (name, device)
        for name, backend in registry().items()
        if "implicit" in backend.paths
        for device in ("cpu", "cuda")
    ]
    return [
        pytest.param(pair, id="-".join(pair))
        for pair in pairs
        if (pair[1] == "cpu" or torch.cuda.is_available())
        and registry()[pair[0]].supports(torch.device(pair[1]), torch.float32)[0]
    ]


@pytest.fixture(
    params=able() or [pytest.param(None, marks=pytest.mark.skip(reason="needs a GPU, or TRITON_INTERPRET=1"))]
)
def target(request):
    """(backend, device), float32 multiplied exactly."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield request.param


CHANNELS = 16
LISTS = {"all": None, "four": [1, 2, 7, 15], "some": [0, 2, 3, 5, 7, 8, 12, 14], "every one": list(range(CHANNELS))}
GEOMETRIES = {
    "3x3": {"padding": 1},
    "stride 2": {"stride": 2, "padding": 1},
    "uneven": {"stride": (2, 3), "padding": (0, 2), "dilation": (1, 2)},
    "dilation 2": {"dilation": 2, "padding": 2},
}
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def frames(*shape, device="cpu", dtype=torch.float32):
    return torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)


def indices(name, device):
    return None if LISTS[name] is None else torch.tensor(LISTS[name], device=device)


def picked(z, index, dimension):
    return z if index is None else z.index_select(dimension, index)


def compare(
    target,
    inputs,
    outputs,
    full_input=False,
    full_output=False,
    dtype=torch.float32,
    depthwise=False,
    size=(3, 6, 5),
    kernel=(3, 3),
    layout=torch.contiguous_format,
    spike_input=False,
    **geometry,
):
    """Result and gradients against torch's convolution of gathered float64 tensors; dormant channels exactly zero."""
    backend, device = target
    columns, rows = indices(inputs, device), indices(outputs, device)
    weight = torch.randn(CHANNELS, 1 if depthwise else CHANNELS, *kernel, device=device).to(dtype)
    weight = weight.contiguous(memory_format=layout).requires_grad_()
    bias = torch.randn(CHANNELS, device=device).to(dtype).requires_grad_()
    m, *plane = size
    width = CHANNELS if full_input or columns is None else len(columns)
    x = frames(m, width, *plane, device=device, dtype=dtype)
    x = (x > 0.5).to(dtype) if spike_input else x
    x.requires_grad_()
    groups = CHANNELS if depthwise else 1
    flags = {"full_input": full_input, "full_output": full_output, "spike_input": spike_input}
    with poisoned_memory():
        y = F.channel_conv2d(
            x,
            weight,
            bias,
            groups=groups,
            in_channels=columns,
            out_channels=rows,
            backend=backend,
            path="implicit",
            **flags,
            **geometry,
        )
        grad = torch.randn_like(y)
        y.backward(grad)
    x64, weight64, bias64 = (z.detach().double().requires_grad_() for z in (x, weight, bias))
    narrow = picked(x64, columns, 1) if full_input else x64
    block = picked(picked(weight64, rows, 0), None if depthwise else columns, 1)
    groups = block.shape[0] if depthwise else 1
    truth = torch.conv2d(narrow, block, picked(bias64, rows, 0), groups=groups, **geometry)
    truth.backward(picked(grad.double(), rows, 1) if full_output else grad.double())
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative_l2(picked(y, rows, 1) if full_output else y, truth) <= TOLERANCE[dtype]
    for name, ours, expected in (
        ("x", x.grad, x64.grad),
        ("weight", weight.grad, weight64.grad),
        ("bias", bias.grad, bias64.grad),
    ):
        assert relative_l2(ours, expected) <= TOLERANCE[dtype], name
        assert not ours[expected == 0].any(), name  # dormant channels among them
    if full_output and rows is not None:
        dormant = torch.ones(CHANNELS, dtype=torch.bool, device=device).index_fill_(0, rows, False)
        assert not y[:, dormant].any()


@pytest.mark.parametrize("full", [False, True], ids=["active width", "full width"])
@pytest.mark.parametrize("outputs", LISTS)
@pytest.mark.parametrize("inputs", LISTS)
def test_implicit_convolution_and_its_gradients_equal_the_gathered_float64_ones(target, inputs, outputs, full):
    compare(target, inputs, outputs, full, full, padding=1)


@pytest.mark.parametrize("full_input", [False, True], ids=["full output", "full input"])
def test_one_side_at_full_width(target, full_input):
    compare(target, "some", "four", full_input, not full_input, padding=1)


@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_stride_padding_and_dilation(target, geometry, layout, depthwise):
    compare(target, "some", "some", depthwise=depthwise, layout=layout, **GEOMETRIES[geometry])


@pytest.mark.parametrize("full", [False, True], ids=["narrow", "full"])
@pytest.mark.parametrize("channels", LISTS)
def test_depthwise(target, channels, full):
    compare(target, channels, channels, full, full, depthwise=True, padding=1)


@pytest.mark.parametrize("depthwise", [False, True], ids=["dense", "depthwise"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_sums_in_float32(target, dtype, depthwise):
    compare(target, "some", "some", True, True, dtype, depthwise, padding=1)


@pytest.mark.parametrize("kernel", [(1, 1), (1, 3), (5, 2)], ids=str)
def test_kernel_sizes(target, kernel):
    compare(target, "some", "four", kernel=kernel)


@pytest.mark.parametrize("size", [(1, 3, 3), (5, 17, 9)], ids=str)
def test_maps_of_one_position_and_of_several_tiles(target, size):
    compare(target, "some", "all", size=size)


def test_spike_input_is_kept_as_bits(target):
    compare(target, "some", "some", True, True, spike_input=True, padding=1)


def test_empty_batch(target):
    compare(target, "some", "some", size=(0, 6, 5))


def test_two_runs_agree_bit_for_bit(target):
    """The weight gradient is split over many programs here."""
    backend, device = target
    x, weight = frames(4, 8, 20, 20, device=device), torch.randn(8, 8, 3, 3, device=device, requires_grad=True)
    runs = []
    for _ in range(2):
        y = F.channel_conv2d(x, weight, path="implicit", backend=backend)
        runs.append((y, *torch.autograd.grad(y.square().sum(), weight)))
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


def test_the_module_takes_the_path(target):
    backend, device = target
    group = nn.ChannelGroup(6)
    group.set_active([1, 2, 3, 5])
    conv = nn.ChannelConv2d(6, 8, 3, in_group=group, backend=backend, path="implicit").to(device)
    x = frames(2, 6, 5, 5, device=device)
    assert relative_l2(conv(x), torch.conv2d(x * group.mask(x.device)[:, None, None], conv.weight, conv.bias)) <= 1e-6
    assert registry()[backend].calls["channel_conv2d"]


def test_autocast_multiplies_in_its_dtype_and_returns_gradients_in_the_weights(target):
    backend, device = target
    x, weight = frames(2, 8, 5, 5, device=device), torch.randn(16, 16, 3, 3, device=device, requires_grad=True)
    bias = torch.randn(16, device=device, requires_grad=True)
    rows, columns = indices("every one", device), indices("some", device)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = F.channel_conv2d(x, weight, bias, in_channels=columns, out_channels=rows, backend=backend, path="implicit")
    y.float().square().sum().backward()
    truth = torch.conv2d(x, weight[:, columns], bias)
    grads = torch.autograd.grad(truth.square().sum(), (weight, bias))
    assert y.dtype == torch.bfloat16
    assert relative_l2(y, truth) <= 1e-2
    for ours, expected in zip((weight.grad, bias.grad), grads, strict=True):
        assert ours.dtype == torch.float32
        assert relative_l2(ours, expected) <= 2e-2


@pytest.mark.parametrize(("dtype", "multiple"), [(torch.float32, 4), (torch.bfloat16, 8), (torch.float16, 8)], ids=str)
@pytest.mark.parametrize("side", ["in_channels", "out_channels"])
def test_a_width_of_broken_accesses_is_refused_and_the_next_one_named(dtype, multiple, side):
    x, weight = (
        frames(2, 38 if side == "in_channels" else 40, 5, 5, dtype=dtype),
        torch.zeros(40, 40, 3, 3, dtype=dtype),
    )
    says = f"path: 'implicit' expected a multiple of {multiple} active channels in {dtype}, got 38: 40 would do; SCA"
    with pytest.raises(ValueError, match=says):
        F.channel_conv2d(x, weight, path="implicit", **{side: torch.arange(38)})


@pytest.mark.parametrize(
    ("x", "arguments", "says"),
    [
        (
            frames(2, 8, 5, 5),
            {"path": "explicit"},
            "path: expected one of gathered, winograd, implicit or None, got 'explicit'",
        ),
        (torch.zeros(2, 8, 5, 5), {"path": "implicit"}, "path: 'implicit' expected x in channels_last"),
        (frames(2, 16, 5, 5), {"path": "implicit", "groups": 2}, "groups=2"),
        (frames(2, 8, 5, 5), {"path": "implicit", "backend": "reference"}, "path: 'implicit' expected backend triton"),
    ],
    ids=["unknown", "contiguous", "grouped", "another backend"],
)
def test_a_path_that_cannot_be_taken_is_an_error(x, arguments, says):
    with pytest.raises(ValueError, match=says):
        F.channel_conv2d(x, torch.zeros(8, 8, 3, 3), **arguments)
