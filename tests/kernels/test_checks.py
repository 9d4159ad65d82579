"""Calls of the operators themselves, which anybody can make: what a kernel would read or write where nothing is, is
refused, whatever the backend."""

import pytest
import torch

from sca_kernels import functional as F
from sca_kernels import nn, ops
from sca_kernels.backends import registry
from sca_kernels.neurons import NeuronConfig
from sca_kernels.testing import activation

CONFIG = tuple(NeuronConfig("lif", 2.0, 1.0, 0.0, True, False, "atan", 2.0, 0.0))
PLIF = ("plif", *CONFIG[1:])
GEOMETRY = ([1, 1], [1, 1], [1, 1], 1)


def swapped(arguments, position, value):
    return (*arguments[:position], value, *arguments[position + 1 :])


def calls(device, backend):
    """A good call of every operator, and per argument that holds an address: its position and name."""
    x = activation((4, 2, 3, 5, 6)).to(device)
    v, c, mask = x[0].clone(), torch.rand(3, device=device), torch.ones(3, dtype=torch.bool, device=device)
    own = {"rate": c, "threshold": c, "v_init": v}
    before = {**own, "mask": mask, "return_v": True, "return_h": True}
    vectors, affine = {"scale": c, "shift": c}, {"weight": c, "bias": c}
    grads, statistics = {"grad_spikes": x, "grad_v": v, "grad_h": x}, {"mean": c, "var": c}
    of_norm = {"norm": torch.rand(4, len(c), device=device), "eps": 1e-5}
    lines, listed, given = {"center": c, "slope": c, "offset": c}, {"channels": None}, {"x": x, "time_steps": 4}
    for name, arguments in {
        "neuron_forward": given | vectors | before,
        "neuron_backward": grads | given | vectors | own,
        "batch_norm_forward": given | affine | {"eps": 1e-5} | before | listed,
        "batch_norm_inference": given | affine | statistics | {"eps": 1e-5} | before | listed,
        "batch_norm_backward": grads | given | affine | of_norm | own | listed,
        "batch_norm_sums": grads | given | vectors | {"center": c} | own,
        "batch_norm_gradient": grads | given | vectors | lines | own,
    }.items():
        addresses = {i: k for i, (k, z) in enumerate(arguments.items()) if isinstance(z, torch.Tensor) and k != "x"}
        yield name, (*arguments.values(), backend, *PLIF), addresses
    frames, weight = torch.ones(8, 2, 5, 6, device=device), torch.randn(4, 3, 3, 3, device=device)
    lists = torch.tensor([0, 2], device=device), torch.tensor([1, 3], device=device)
    bits = ops.pack_spikes(frames.flatten(), backend)
    yield (
        "channel_conv2d",
        (frames, weight, torch.rand(4, device=device), *GEOMETRY, *lists, False, "gathered", bits, backend),
        {2: "bias", 11: "bits"},
    )
    grad, block = torch.randn(8, 2, 5, 6, device=device), torch.randn(2, 2, 3, 3, device=device)
    yield (
        "channel_conv2d_backward",
        (grad, bits, frames.shape, False, weight, block, *GEOMETRY, *lists, [True] * 3, "gathered", backend),
        {0: "grad", 1: "x"},
    )
    yield "unpack_spikes", (bits, frames.numel(), torch.float32, backend), {0: "packed"}


OTHERS = {
    "shorter": lambda z: z[..., :-1],
    "longer": lambda z: torch.cat([z, z], -1),
    "of another dtype": lambda z: z.to(torch.int16 if not z.is_floating_point() else torch.float64),
    "empty": lambda z: z[..., :0],
}


@pytest.mark.parametrize("other", OTHERS)
def test_operators_refuse_tensors_that_their_kernels_would_misread(target, other):
    backend, device = target
    for name, arguments, addresses in calls(device, backend):
        operator = getattr(torch.ops.sca_kernels, name)
        operator(*arguments)
        for position, argument in addresses.items():
            wrong = swapped(arguments, position, OTHERS[other](arguments[position]))
            with pytest.raises((TypeError, ValueError), match=f"^{argument}: expected"):
                operator(*wrong)


def test_vectors_with_gaps_are_refused_below_the_checked_entry_points(target):
    backend, device = target
    x, c = activation((4, 2, 3, 5)).to(device), torch.rand(3, device=device)
    gaps = torch.stack([c, c], -1)[..., 0]
    arguments = (x, 4, gaps, None, None, None, None, None, False, False, backend, *CONFIG)
    for call in (ops.neuron_forward, torch.ops.sca_kernels.neuron_forward):
        with pytest.raises(ValueError, match="scale: expected a contiguous"):
            call(*arguments)
    assert F.lif(x, scale=gaps, backend=backend).spikes.equal(F.lif(x, scale=c, backend=backend).spikes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({0: torch.zeros(4, 2)}, "x: expected floating-point"),
        ({0: torch.zeros(4, 2, 0)}, "x: expected floating-point"),
        ({1: 0}, "time_steps: expected 4"),
        ({1: 5}, "time_steps: expected 4"),
        ({11: "tpu"}, "neuron: expected one of"),
        ({11: "plif"}, "rate: expected a vector"),
        ({17: "tpu"}, "surrogate: expected one of"),
        ({2: torch.rand(3).to_sparse()}, "scale: expected a dense tensor"),
    ],
    ids=lambda z: z if isinstance(z, str) else "",
)
def test_operators_refuse_what_is_no_neuron_call(changes, says):
    arguments = (torch.randn(4, 2, 3, 5), 4, None, None, None, None, None, None, True, False, "", *CONFIG)
    for position, value in changes.items():
        arguments = swapped(arguments, position, value)
    with pytest.raises((TypeError, ValueError), match=says):
        torch.ops.sca_kernels.neuron_forward(*arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_training_on_an_empty_batch_reads_vectors_in_the_states_dtype(target, dtype):
    backend, device = target
    module = nn.BatchNormLIF(5, backend=backend).to(device)
    x = torch.zeros(4, 0, 5, 6, 6, dtype=dtype, device=device, requires_grad=True)
    y = module(x)
    assert y.shape == x.shape
    assert y.dtype == dtype
    y.sum().backward()
    assert not module.weight.grad.any()
    assert torch.equal(module.running_mean, torch.zeros(5, device=device))


BAD_LISTS = {"unsorted": [2, 0], "repeated": [1, 1], "too large": [0, 8], "negative": [-1, 3]}


@pytest.mark.parametrize(
    "make",
    [
        *(lambda z, i=i: z.new_tensor(i) for i in BAD_LISTS.values()),
        lambda z: z.int(),
        lambda z: z[None],
        lambda z: z[:0],
        lambda z: torch.stack([z, z], -1)[:, 0],
    ],
    ids=[*BAD_LISTS, "int32", "two dimensions", "no channel", "every other element"],
)
def test_operators_refuse_lists_that_name_no_channels_of_theirs(target, make):
    backend, device = target
    for name, arguments, _ in calls(device, backend):
        positions = {"channel_conv2d": (7, 8), "channel_conv2d_backward": (10, 11)}.get(name, ())
        for position, side in zip(positions, ("in_channels", "out_channels"), strict=False):
            wrong = swapped(arguments, position, make(arguments[position]))
            with pytest.raises((TypeError, ValueError), match=f"^{side}: expected"):
                getattr(torch.ops.sca_kernels, name)(*wrong)


@pytest.mark.parametrize("path", ["gathered", "winograd"])
@pytest.mark.parametrize("side", ["in_channels", "out_channels"])
@pytest.mark.parametrize("kind", BAD_LISTS)
def test_lists_are_checked_when_compiled_too(kind, side, path):
    weight, index = torch.randn(8, 8, 3, 3, requires_grad=True), torch.tensor(BAD_LISTS[kind])
    width = len(index) if side == "in_channels" else 8
    x = torch.rand(2, width, 6, 6).contiguous(memory_format=torch.channels_last)
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def convolve(x, weight, index):
        return F.channel_conv2d(x, weight, padding=1, path=path, **{side: index})

    good = torch.tensor([1, 3])
    assert convolve(x, weight, good).shape[1] == (8 if side == "in_channels" else 2)
    with pytest.raises(ValueError, match=rf"{side}: expected sorted unique indices in \[0, 8\)"):
        convolve(x, weight, index)


def test_a_list_that_was_written_to_is_checked_again():
    weight, x, index = torch.randn(8, 8, 3, 3), torch.rand(2, 2, 6, 6), torch.tensor([1, 3])
    F.channel_conv2d(x, weight, in_channels=index)
    index[0] = 3
    with pytest.raises(ValueError, match="in_channels: expected sorted unique"):
        F.channel_conv2d(x, weight, in_channels=index)
    with torch.inference_mode():
        index = torch.tensor([1, 3])
        F.channel_conv2d(x, weight, in_channels=index)
        index[0] = 9
        with pytest.raises(ValueError, match="in_channels: expected sorted unique"):
            F.channel_conv2d(x, weight, in_channels=index)


@pytest.mark.parametrize("kind", ["repeated", "too large", "negative"])
def test_blocks_of_weights_are_not_read_or_written_by_such_lists(target, kind):
    backend, device = target
    weight, index = torch.zeros(8, 8, device=device), torch.tensor(BAD_LISTS[kind], device=device)
    with pytest.raises(ValueError, match=r"out_channels: expected unique indices in \[0, 8\)"):
        F.gather_weight(weight, None, index, backend=backend)
    with pytest.raises(ValueError, match=r"out_channels: expected unique indices in \[0, 8\)"):
        F.put_weight(torch.ones(2, 8, device=device), weight, None, index, backend=backend)
    assert not weight.any()


def test_lists_in_use_are_read_once_and_forgotten_with_their_tensors():
    from sca_kernels import channels

    weight, x = torch.randn(8, 8, 3, 3), torch.rand(2, 2, 6, 6)
    index = torch.tensor([1, 3])
    key = id(index)
    F.channel_conv2d(x, weight, in_channels=index)
    assert channels._known[key][2].listed == (1, 3)
    del index
    assert key not in channels._known


def test_lazily_negated_weights_blocks_and_lists_are_read_and_written_as_they_are(target):
    backend, device = target
    weight, rows = torch.randn(5, 4, 3, 3, device=device), torch.tensor([0, 3], device=device)
    negated = torch._neg_view(weight)
    assert torch.equal(F.gather_weight(negated, None, rows, backend=backend), -weight[rows])
    assert torch.equal(F.gather_weight(weight, None, torch._neg_view(-rows), backend=backend), weight[rows])
    block = torch.randn(2, 4, 3, 3, device=device)
    for full in (weight.clone(), torch._neg_view(weight.clone()), torch.complex(weight, weight).conj().imag):
        for given in (block, torch._neg_view(block)):
            if full.is_contiguous():
                expected = full.clone().index_copy_(0, rows, given.clone())
                F.put_weight(given, full, None, rows, backend=backend)
                assert torch.equal(full, expected)
            else:
                with pytest.raises(ValueError, match=r"weight: expected .* contiguous"):
                    F.put_weight(given, full, None, rows, backend=backend)


@pytest.mark.parametrize(
    "make",
    [
        lambda z: z.to_sparse(),
        lambda z: torch.quantize_per_tensor(z, 0.1, 0, torch.qint8),
        lambda z: torch._subclasses.FakeTensorMode().from_tensor(z),
        lambda z: z.to_mkldnn(),
    ],
    ids=["sparse", "quantized", "a subclass without memory", "mkldnn"],
)
def test_tensors_without_plain_memory_are_refused_by_name(make):
    weight, index = torch.randn(5, 4), torch.tensor([0, 2])
    with pytest.raises(TypeError, match="weight: expected a plain tensor"):
        F.gather_weight(make(weight), index)
    with pytest.raises(TypeError, match="block: expected a plain tensor"):
        F.put_weight(make(weight[:, :2].contiguous()), weight, index)


def test_tensors_whose_storage_was_freed_are_refused(target):
    """What sharding libraries do to parameters that another rank holds."""
    backend, device = target
    if not registry()[backend].hands_over_addresses:
        pytest.skip(f"torch's and Triton's own kernels take addresses for {backend}")
    x, weight, index = torch.randn(4, 2, 3, 5).to(device), torch.randn(8, 4, device=device), torch.tensor([0, 2])
    for z in (x, weight):
        z.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="whose storage was freed"):
        F.lif(x, backend=backend)
    if device == "cpu":
        with pytest.raises(ValueError, match="whose storage was freed"):
            F.gather_weight(weight, index, backend=backend)


@pytest.mark.parametrize(
    "block", [None, torch.zeros(2, 1, 3, 3), torch.zeros(2, 2, 3, 3, dtype=torch.float64)], ids=str
)
def test_a_block_that_is_not_that_of_the_lists_is_refused(block):
    x, grad, weight = torch.ones(8, 2, 5, 6), torch.randn(8, 2, 5, 6), torch.randn(4, 3, 3, 3)
    lists, needed = (torch.tensor([0, 2]), torch.tensor([1, 3])), [True] * 3
    with pytest.raises(ValueError, match=r"^block: expected torch.float32 \(2, 2, 3, 3\)"):
        torch.ops.sca_kernels.channel_conv2d_backward(
            *(grad, x, x.shape, False, weight, block, *GEOMETRY, *lists, needed, "gathered", "")
        )
