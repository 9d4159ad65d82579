"""Channel-sparse convolution and linear layers, selection of channels, and spikes as bits."""

import itertools

import pytest
import torch

from sca_kernels import functional as F
from sca_kernels import nn
from sca_kernels.backends import registry
from sca_kernels.channels import Bits, storage_order
from sca_kernels.layout import is_channels_last
from sca_kernels.testing import activation, relative_l2

INDEX = {"all": None, "some": [0, 2, 3, 7], "one": [5], "every one by index": list(range(8))}


def index_of(name, device="cpu"):
    return None if INDEX[name] is None else torch.tensor(INDEX[name], device=device)


def spikes(*shape, device="cpu", channels_last=False):
    s = (torch.rand(shape, device=device) < 0.3).float()
    return s.contiguous(memory_format=torch.channels_last) if channels_last else s


def dense_twin(x, weight, bias, inputs, outputs, **geometry):
    """The masked dense convolution: dormant inputs zero, dormant outputs dropped."""
    if inputs is not None:
        full = x.new_zeros(x.shape[0], weight.shape[1], *x.shape[2:])
        x = full.index_copy(1, inputs, x)
    y = torch.conv2d(x, weight, bias, **geometry)
    return y if outputs is None else y.index_select(1, outputs)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("spike_input", [False, True], ids=["saved whole", "saved as bits"])
@pytest.mark.parametrize("outputs", INDEX)
@pytest.mark.parametrize("inputs", INDEX)
def test_convolution_equals_the_masked_dense_one_and_dormant_gradients_are_exactly_zero(
    target, inputs, outputs, spike_input, channels_last
):
    backend, device = target
    rows, columns = index_of(outputs, device), index_of(inputs, device)
    x = spikes(3, 8 if columns is None else len(columns), 6, 5, device=device, channels_last=channels_last)
    parameters = torch.randn(8, 8, 3, 3, device=device), torch.randn(8, device=device)
    results = []
    for run in ("ours", "dense"):
        leaf, weight, bias = (z.clone().requires_grad_() for z in (x, *parameters))
        if run == "ours":
            y = F.channel_conv2d(
                leaf,
                weight,
                bias,
                1,
                1,
                in_channels=columns,
                out_channels=rows,
                spike_input=spike_input,
                backend=backend,
            )
        else:
            y = dense_twin(leaf, weight, bias, columns, rows, padding=1)
        torch.manual_seed(1)
        (y * torch.randn(y.shape).to(device)).sum().backward()
        results.append((y, leaf.grad, weight.grad, bias.grad))
    for name, ours, dense in zip(("y", "x", "weight", "bias"), *results, strict=True):
        assert relative_l2(ours, dense) <= 2e-6, name
    _, _, g_weight, g_bias = results[0]
    for dimension, index in ((0, rows), (1, columns)):
        if index is not None:
            dormant = torch.ones(8, dtype=torch.bool, device=device).index_fill_(0, index, False)
            assert not g_weight.transpose(0, dimension)[dormant].any()
            assert dimension or not g_bias[dormant].any()


@pytest.mark.parametrize(
    "geometry",
    [
        {"stride": 2, "padding": 1},
        {"stride": (2, 1), "padding": (0, 2)},
        {"dilation": 2, "padding": 2},
        {"padding": 0},
    ],
    ids=str,
)
def test_stride_padding_dilation_without_bias(geometry):
    x, weight, index = spikes(2, 4, 9, 8), torch.randn(8, 8, 3, 3), index_of("some")
    ours = F.channel_conv2d(x, weight, in_channels=index, out_channels=index, **geometry)
    assert relative_l2(ours, dense_twin(x, weight, None, index, index, **geometry)) <= 2e-6


def test_groups_run_while_all_channels_are_active():
    x, weight = spikes(2, 8, 6, 6), torch.randn(8, 2, 3, 3)
    assert torch.equal(F.channel_conv2d(x, weight, groups=4), torch.conv2d(x, weight, groups=4))


def test_depthwise_keeps_each_channel_with_its_filter():
    x, weight, index = spikes(2, 4, 6, 6), torch.randn(8, 1, 3, 3, requires_grad=True), index_of("some")
    y = F.channel_conv2d(x, weight, groups=8, in_channels=index, out_channels=index)
    assert relative_l2(y, torch.conv2d(x, weight[index], groups=4)) <= 1e-6
    y.sum().backward()
    assert weight.grad[[1, 4, 5, 6]].abs().sum() == 0
    assert weight.grad[index].abs().sum() > 0


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, "same", "valid"])
def test_module_padding_modes_equal_conv2d(padding_mode, padding):
    for kernel in (3, 2) if padding == "same" else (3,):
        ours = nn.ChannelConv2d(3, 4, kernel, padding=padding, padding_mode=padding_mode)
        torchs = torch.nn.Conv2d(3, 4, kernel, padding=padding, padding_mode=padding_mode)
        torchs.load_state_dict(ours.state_dict())
        x = torch.randn(2, 3, 6, 7)
        assert relative_l2(ours(x), torchs(x)) <= 1e-6
        assert relative_l2(ours(x.expand(4, 2, 3, 6, 7)), torchs(x).expand(4, -1, -1, -1, -1)) <= 1e-6


def test_full_input_selects_and_full_output_scatters():
    x, weight, rows, columns = spikes(2, 8, 6, 6), torch.randn(8, 8, 3, 3), index_of("some"), index_of("one")
    y = F.channel_conv2d(x, weight, in_channels=columns, out_channels=rows, full_input=True, full_output=True)
    expected = torch.zeros_like(y).index_copy(1, rows, torch.conv2d(x[:, columns], weight[rows][:, columns]))
    assert relative_l2(y, expected) <= 1e-6
    assert y.shape[1] == 8


def test_time_major_input_is_a_view_and_keeps_channels_last():
    x = spikes(8, 3, 6, 5, channels_last=True)
    weight = torch.randn(4, 3, 3, 3)
    y = F.channel_conv2d(x.unflatten(0, (4, 2)), weight)
    assert y.shape == (4, 2, 4, 4, 3)
    assert y.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y.flatten(0, 1), F.channel_conv2d(x, weight))


def test_autocast_runs_in_its_dtype_and_returns_full_precision_gradients():
    conv = nn.ChannelConv2d(3, 4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv(torch.rand(2, 3, 6, 6))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert conv.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("spike_input", [False, True], ids=["saved whole", "saved as bits"])
@pytest.mark.parametrize("groups", [1, 8], ids=["dense", "depthwise"])
def test_autocast_casts_what_is_active_and_gives_gradients_in_the_weights_dtype(target, layout, spike_input, groups):
    backend, device = target
    index = index_of("some", device)
    weight = torch.randn(8, 8 // groups, 3, 3, device=device).contiguous(memory_format=layout).requires_grad_()
    bias = torch.randn(8, device=device, requires_grad=True)
    x = spikes(2, 4, 6, 5, device=device).bfloat16().requires_grad_()
    cast = []
    watch = torch.autograd.graph.saved_tensors_hooks(lambda z: cast.append(z) or z, lambda z: z)
    options = {"groups": groups, "spike_input": spike_input, "backend": backend}
    with watch, torch.autocast(device, dtype=torch.bfloat16):
        y = F.channel_conv2d(x, weight, bias, in_channels=index, out_channels=index, **options)
    inputs = 1 if groups == 8 else 4
    assert [tuple(z.shape) for z in cast if z.dtype == torch.bfloat16 and z is not x] in (
        [(4, inputs, 3, 3)],
        [tuple(x.shape), (4, inputs, 3, 3)],
    )
    block = weight[index] if groups == 8 else weight[index][:, index]
    truth = torch.conv2d(x.float(), block, bias[index], groups=min(groups, 4))
    grad = torch.randn_like(y)
    ours = torch.autograd.grad(y, (x, weight, bias), grad)
    expected = torch.autograd.grad(truth, (x, weight, bias), grad.float())
    assert y.dtype == torch.bfloat16
    assert relative_l2(y, truth) <= 1e-2
    for name, z, reference in zip(("x", "weight", "bias"), ours, expected, strict=True):
        assert z.dtype == reference.dtype
        assert relative_l2(z, reference) <= 1e-2, name
        assert not z[reference == 0].any(), name


def test_the_block_that_was_gathered_is_not_gathered_again(target, monkeypatch):
    backend, device = target
    index = index_of("some", device)
    weight = torch.randn(8, 8, 3, 3, device=device, requires_grad=True)
    y = F.channel_conv2d(
        spikes(2, 4, 6, 6, device=device), weight, in_channels=index, out_channels=index, backend=backend
    )
    kind = type(registry()[backend])
    monkeypatch.setattr(kind, "gather_weight", lambda *_: pytest.fail("gathered again"))
    y.sum().backward()
    assert weight.grad[index][:, index].any()


def saved_bytes(x, weight, **arguments):
    """What a convolution keeps for the backward pass besides its weight."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda z: saved.append(z) or z, lambda z: z):
        F.channel_conv2d(x, weight, **arguments)
    return sum(z.nbytes for z in saved if z.data_ptr() != weight.data_ptr())


def test_spike_input_saves_one_bit_per_element_and_refuses_other_values():
    weight, x = torch.randn(4, 8, 3, 3, requires_grad=True), spikes(4, 8, 16, 16)
    assert saved_bytes(x, weight, spike_input=True) == x.numel() // 8
    assert saved_bytes(x, weight, spike_input=False) == x.nbytes
    with pytest.raises(ValueError, match="x: expected zeros and ones only with spike_input=True"):
        F.channel_conv2d(x * 0.5, weight, spike_input=True)


def test_spikes_are_found_out_and_anything_else_is_saved_as_it_is():
    weight, x = torch.randn(4, 8, 3, 3, requires_grad=True), spikes(4, 8, 16, 16)
    assert saved_bytes(x, weight, path="gathered") == x.numel() // 8
    for other in (torch.randn_like(x), x * 0.5, x.masked_fill(x.cumsum(0) == x.sum(0), float("nan"))):
        assert saved_bytes(other, weight, path="gathered") == x.nbytes
    with torch.no_grad():
        assert saved_bytes(x, weight, path="gathered") == 0


def test_torchs_own_convolution_keeps_its_input_unless_bits_are_asked_for():
    weight, x = torch.randn(4, 8, 3, 3, requires_grad=True), spikes(4, 8, 16, 16)
    kept = [saved_bytes(x, weight, stride=2, spike_input=spike_input) for spike_input in (None, False, True)]
    assert kept == [x.nbytes, x.nbytes, x.numel() // 8]


def graph(y):
    """Name of the last operation but views."""
    node = y.grad_fn
    while node.name() in ("UnsafeViewBackward0", "ViewBackward0", "UnflattenBackward0"):
        node = node.next_functions[0][0]
    return node.name()


@pytest.mark.parametrize("groups", ["no group", "all active"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    ("shape", "arguments"),
    [
        ((2, 8, 6, 6), {"kernel_size": 1, "stride": 2}),
        ((2, 8, 6, 6), {"kernel_size": 3, "padding": 1}),
        ((2, 8, 1, 1), {"kernel_size": 3, "padding": 1}),
        ((3, 2, 8, 6, 6), {"kernel_size": 3, "padding": 1}),
    ],
    ids=["1x1", "few positions", "one position", "time-major"],
)
def test_where_nothing_is_sparse_torchs_own_convolution_runs(shape, arguments, layout, groups):
    many = [nn.ChannelGroup(n, str(n)) if groups == "all active" else None for n in (8, 4)]
    ours = nn.ChannelConv2d(8, 4, **arguments, in_group=many[0], out_group=many[1]).to(memory_format=layout)
    x = spikes(*shape)
    if x.dim() == 4:
        x = x.contiguous(memory_format=layout)
    y = ours(x)
    assert graph(y) == graph(torch.conv2d(torch.zeros(1, 8, 6, 6), ours.weight)) == "ConvolutionBackward0"
    frames = x.flatten(0, -4)
    assert torch.equal(y.flatten(0, -4), torch.conv2d(frames, ours.weight, ours.bias, ours.stride, ours.padding))


def test_autocast_takes_torchs_own_convolution_in_its_dtype():
    conv, x = nn.ChannelConv2d(8, 4, 1), spikes(2, 8, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv(x)
        assert torch.equal(y, torch.conv2d(x, conv.weight, conv.bias))
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "arguments", [{"path": "gathered"}, {"backend": "reference"}, {"spike_input": True}], ids=lambda a: next(iter(a))
)
def test_what_is_asked_for_is_not_left_to_torch(arguments):
    assert graph(nn.ChannelConv2d(8, 4, 1, **arguments)(spikes(2, 8, 6, 6))) == "channel_conv2dBackward"


@pytest.mark.parametrize("strides", [(8, 1, 1, 1), (8, 1, 8, 8)], ids=["contiguous", "channels_last"])
def test_bits_of_maps_of_one_position_come_back_in_the_layout_they_had(strides):
    # Both layouts at once: torch tells them apart by the strides, and is slow where input and weight differ.
    x = spikes(4, 8, 1, 1).as_strided((4, 8, 1, 1), strides)
    assert x.is_contiguous()
    assert x.is_contiguous(memory_format=torch.channels_last)
    bits = Bits(F.pack_spikes(x), x.shape, storage_order(x) != (0, 1, 2, 3))
    back = bits.unflattened(F.unpack_spikes(bits.packed, (x.numel(),)))
    assert back.stride() == strides
    assert torch.equal(back, x)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_bits_of_one_channel_come_back_in_the_order_of_memory(channels_last):
    x = spikes(2, 1, 3, 5)
    x = x.as_strided(x.shape, (15, 1, 5, 1)) if channels_last else x
    bits = Bits(F.pack_spikes(x), x.shape, storage_order(x) != (0, 1, 2, 3))
    back = bits.unflattened(F.unpack_spikes(bits.packed, (x.numel(),)))
    assert back.stride() == x.stride()
    assert torch.equal(back, x)


def test_bits_round_trip_on_every_backend(target):
    backend, device = target
    for shape in [(0,), (1,), (7,), (8, 1), (9,), (3, 5, 7), (4, 2, 16, 9, 9)]:
        for dtype in (torch.float32, torch.bfloat16):
            s = spikes(*shape, device=device).to(dtype)
            packed = F.pack_spikes(s, backend=backend)
            assert packed.shape == ((s.numel() + 7) // 8,)
            assert torch.equal(packed, F.pack_spikes(s, backend="reference"))
            assert torch.equal(F.unpack_spikes(packed, shape, dtype, backend=backend), s)


CHANGES = {
    "padding_mode": "circular",
    "padding": (2, 2),
    "stride": (2, 2),
    "dilation": (2, 2),
    "bias": torch.nn.Parameter(torch.linspace(-1, 1, 4)),
    "weight": torch.nn.Parameter(torch.linspace(-1, 1, 4 * 3 * 25).view(4, 3, 5, 5)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_module_follows_an_attribute_that_is_set_between_calls(name):
    """The answer whether a layer is torch's own convolution is kept; its attributes may change all the same."""
    layers = [kind(3, 4, 3, padding=1) for kind in (nn.ChannelConv2d, torch.nn.Conv2d)]
    layers[1].load_state_dict(layers[0].state_dict())
    x = torch.randn(2, 3, 8, 8)
    for layer in layers:
        layer(x)
        setattr(layer, name, CHANGES[name])
        if name in ("padding", "padding_mode"):  # torch.nn.Conv2d reads this in place of padding
            padding = layer.padding
            layer._reversed_padding_repeated_twice = [padding[1], padding[1], padding[0], padding[0]]
    torch.testing.assert_close(layers[0](x), layers[1](x))


def test_module_asked_for_a_path_or_backend_between_calls_takes_it():
    layer = nn.ChannelConv2d(8, 8, 3, padding=1)
    x = torch.randn(2, 8, 4, 4)
    layer(x)
    layer.backend = "nowhere"
    with pytest.raises(ValueError, match=r"^backend"):
        layer(x)
    layer.backend, layer.spike_input = None, True
    with pytest.raises(ValueError, match=r"^x: expected zeros and ones"):
        layer(x)
    layer.spike_input = None
    layer(x)
    for wrong in (x.double(), x.to("meta")):
        with pytest.raises((TypeError, ValueError), match=r"^(x|weight)"):
            layer(wrong)


def test_module_prunes_and_regrows_with_identical_parameters():
    group_in, group_out = nn.ChannelGroup(6), nn.ChannelGroup(8)
    conv = nn.ChannelConv2d(6, 8, 3, in_group=group_in, out_group=group_out)
    parameters = list(conv.parameters())
    x = torch.randn(2, 6, 5, 5)
    dense = conv(x)
    group_in.set_active([1, 2])
    group_out.set_active([0, 7])
    narrow = conv(x[:, [1, 2]])
    assert narrow.shape[1] == 2
    assert torch.equal(conv(x), narrow)  # full-width input: the active channels are selected
    group_in.set_active(range(6))
    group_out.set_active(range(8))
    assert torch.equal(conv(x), dense)
    assert all(a is b for a, b in zip(parameters, conv.parameters(), strict=True))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", [nn.ChannelConv2d, nn.ChannelLinear])
def test_evaluation_sees_every_change_of_parameters_and_groups(kind, mode):
    """Whatever the change goes through: what averages weights, or swaps them, does so behind autograd's back."""
    inputs, outputs = nn.ChannelGroup(6), nn.ChannelGroup(8)
    tail = (3,) if kind is nn.ChannelConv2d else ()
    layer = kind(6, 8, *tail, in_group=inputs, out_group=outputs).eval()
    inputs.set_active([1, 2, 4])
    outputs.set_active([0, 3, 7])
    x = torch.randn(2, 6, 5, 5) if tail else torch.randn(2, 6)
    drawn = torch.randn_like(layer.weight)

    def swap():
        layer.weight.data = drawn

    seen = []
    for change in (
        lambda: None,
        lambda: inputs.set_active([0, 1, 5]),
        lambda: outputs.set_active([2, 3]),
        lambda: torch.optim.SGD(layer.parameters(), lr=1.0).step(),
        lambda: layer.load_state_dict({name: torch.randn_like(p) for name, p in layer.state_dict().items()}),
        lambda: setattr(layer, "weight", torch.nn.Parameter(torch.randn_like(layer.weight))),
        lambda: layer.weight.data.add_(1),
        lambda: layer.bias.data.copy_(drawn.flatten()[:8]),
        lambda: layer.weight.detach()[2:4].zero_(),
        swap,
        lambda: drawn[3].add_(1),  # the same memory under another name
    ):
        layer.zero_grad()
        layer(x[:, inputs.active]).sum().backward()
        change()
        with mode():
            y = layer(x[:, inputs.active])
        assert torch.equal(y, layer(x[:, inputs.active]))
        seen.append(y.clone())
    assert all(y.shape != z.shape or not torch.equal(y, z) for y, z in itertools.pairwise(seen))


def test_a_dropout_behind_a_neuron_is_named_with_the_layer_and_spike_input():
    conv = nn.ChannelConv2d(4, 6, 3, spike_input=True)
    dropped = torch.nn.functional.dropout(spikes(3, 2, 4, 5, 5), 0.5).index_fill_(2, torch.tensor(1), 2.0)
    with pytest.raises(ValueError, match=r"ChannelConv2d\(4, 6, kernel_size=\(3, 3\).*spike_input=True.*dropout"):
        conv(dropped)
    with pytest.raises(ValueError, match=r"^(?!.*dropout)"):  # whatever else is off is said as it was
        conv(spikes(2, 3, 5, 5))
    conv.spike_input = None
    assert conv(dropped).shape == (3, 2, 6, 3, 3)


def test_layers_made_in_inference_mode_run():
    with torch.inference_mode():
        conv, linear = nn.ChannelConv2d(3, 4, 3).eval(), nn.ChannelLinear(4, 2).eval()
        x = torch.randn(2, 3, 5, 5)
        y = conv(x)
        conv.weight.mul_(2)  # seen, though nothing counts changes of such a weight
        assert relative_l2(conv(x) - conv.bias[:, None, None], 2 * (y - conv.bias[:, None, None])) <= 1e-5
        assert linear(y.mean((2, 3))).shape == (2, 2)


@pytest.mark.parametrize("features_per_channel", [1, 4])
def test_linear_equals_the_masked_dense_one(features_per_channel):
    group_in, group_out = nn.ChannelGroup(5), nn.ChannelGroup(6)
    linear = nn.ChannelLinear(
        5 * features_per_channel, 6, in_group=group_in, out_group=group_out, features_per_channel=features_per_channel
    )
    group_in.set_active([0, 3])
    group_out.set_active([1, 2, 5])
    x = torch.randn(4, 2, 5, features_per_channel)
    masked = x * group_in.mask()[:, None]
    expected = torch.nn.functional.linear(masked.flatten(2), linear.weight, linear.bias)[..., [1, 2, 5]]
    assert relative_l2(linear(x[:, :, [0, 3]].flatten(2)), expected) <= 1e-6
    linear(x.flatten(2)).sum().backward()
    assert linear.weight.grad[[0, 3, 4]].abs().sum() == 0
    assert linear.weight.grad.unflatten(1, (5, -1))[:, [1, 2, 4]].abs().sum() == 0


W = torch.randn(8, 8, 3, 3)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda i: F.channel_conv2d(torch.zeros(2, 8, 5), W), ValueError, "x: expected"),
        (lambda i: F.channel_conv2d(torch.zeros(2, 7, 5, 5), W), ValueError, "x: expected 8 active"),
        (
            lambda i: F.channel_conv2d(i, W, in_channels=torch.tensor([3, 1])),
            ValueError,
            "in_channels: expected sorted",
        ),
        (
            lambda i: F.channel_conv2d(i, W, in_channels=torch.tensor([1, 1])),
            ValueError,
            "in_channels: expected sorted",
        ),
        (lambda i: F.channel_conv2d(i, W, out_channels=torch.tensor([8])), ValueError, "out_channels: expected sorted"),
        (
            lambda i: F.channel_conv2d(i, W, out_channels=torch.tensor([-1])),
            ValueError,
            "out_channels: expected sorted",
        ),
        (lambda i: F.channel_conv2d(i, W, out_channels=torch.tensor([], dtype=int)), ValueError, "at least one"),
        (lambda i: F.channel_conv2d(i, W, out_channels=[0]), TypeError, "out_channels: expected a 1-D int64"),
        (lambda i: F.channel_conv2d(i, W, torch.zeros(3)), ValueError, "bias: expected"),
        (lambda i: F.channel_conv2d(i, W, stride=(1, 2, 3)), ValueError, "stride: expected"),
        (lambda i: F.channel_conv2d(i, W.double()), TypeError, "weight: expected the dtype"),
        (lambda i: F.channel_conv2d(i, W.to("meta")), ValueError, "weight: expected a tensor on cpu"),
        (lambda i: F.channel_conv2d(i, W, torch.zeros(8).to("meta")), ValueError, "bias: expected a tensor on cpu"),
        (
            lambda i: F.channel_conv2d(i, W, in_channels=torch.arange(8).to("meta")),
            ValueError,
            "in_channels: expected a tensor on cpu",
        ),
        (lambda i: F.channel_conv2d(i, W[:, :4], groups=2, out_channels=torch.tensor([1])), ValueError, "grouped"),
        (lambda i: F.unpack_spikes(torch.zeros(2, dtype=torch.uint8), (3,)), ValueError, "packed: expected"),
    ],
)
def test_bad_arguments_are_named(make, error, says):
    with pytest.raises(error, match=says):
        make(torch.zeros(2, 8, 5, 5))


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_select_takes_active_channels_in_the_layout_of_its_input(channels_last):
    group = nn.ChannelGroup(6, "g")
    select = nn.ChannelSelect(6, group)
    x = activation((3, 2, 6, 4, 5), channels_last=channels_last)
    assert select(x) is x
    group.set_active([1, 2, 5])
    y = select(x)
    assert torch.equal(y, x[:, :, [1, 2, 5]])
    assert is_channels_last(y) == channels_last
    with nn.probing([group]):
        assert select(x) is x


def test_select_keeps_where_its_channels_lie_in_its_state():
    narrow = nn.ChannelSelect(6, nn.ChannelGroup(2))
    narrow.load_state_dict({"index": torch.tensor([3, 5])})
    x = activation((3, 2, 6))
    assert torch.equal(narrow(x), x[:, :, [3, 5]])


def test_select_names_what_does_not_fit():
    with pytest.raises(ValueError, match="group: expected at most the 4 channels"):
        nn.ChannelSelect(4, nn.ChannelGroup(5))
    with pytest.raises(ValueError, match="x: expected 4 channels in dimension 2"):
        nn.ChannelSelect(4, nn.ChannelGroup(4))(torch.zeros(2, 2, 3))
