"""Convolutions over one dimension and transposed ones: torch's own of the active channels."""

import copy
import pickle

import pytest
import torch

from sca_kernels import nn
from sca_kernels.testing import relative_l2

# A layer, torch's own, and the space that it reads.
KINDS = {
    "Conv1d": (nn.ChannelConv1d, torch.nn.Conv1d, (9,)),
    "ConvTranspose1d": (nn.ChannelConvTranspose1d, torch.nn.ConvTranspose1d, (9,)),
    "ConvTranspose2d": (nn.ChannelConvTranspose2d, torch.nn.ConvTranspose2d, (6, 5)),
}
GEOMETRIES = [
    {},
    {"stride": 2, "padding": 1, "bias": False},
    {"dilation": 2, "padding": 3},
    {"groups": 2},
    {"stride": 2, "output_padding": 1},
]
INDEX = {"all": None, "some": [0, 2, 3, 7], "one": [5]}

kinds = pytest.mark.parametrize("kind", KINDS)


def pair(kind, *arguments, **named):
    """Ours and torch's of the same weights, and an input of three frames."""
    ours, torchs, space = KINDS[kind]
    layers = ours(*arguments, **named), torchs(*arguments, **named)
    assert layers[1].load_state_dict(layers[0].state_dict())
    return *layers, spikes(3, arguments[0], *space)


def spikes(*shape):
    return (torch.rand(shape) < 0.3).float()


def grouped(kind, inputs, outputs, **named):
    """A pair of 8 input and 8 output channels, ours of the active ones."""
    ours, torchs, x = pair(kind, 8, 8, 3, padding=1, **named)
    ours.in_group, ours.out_group = nn.ChannelGroup(8, "in"), nn.ChannelGroup(8, "out")
    for group, index in ((ours.in_group, INDEX[inputs]), (ours.out_group, INDEX[outputs])):
        group.set_active(range(8) if index is None else index)
    return ours, torchs, x


def masked(torchs, ours, x):
    """The dense layer: dormant inputs zero, dormant outputs dropped."""
    dim = x.dim() - 1 - ours.spatial
    y = torchs(x * ours.in_group.mask().view(-1, *[1] * ours.spatial))
    return y.index_select(dim, ours.out_group.active)


@pytest.mark.parametrize(
    ("kind", "geometry"),
    [(kind, g) for kind in KINDS for g in GEOMETRIES if kind != "Conv1d" or "output_padding" not in g],
    ids=str,
)
def test_a_dense_layer_is_torchs_bit_for_bit(kind, geometry):
    ours, torchs, x = pair(kind, 8, 6, 3, **geometry)
    z, w = (x.clone().requires_grad_() for _ in range(2))
    y, expected = ours(z), torchs(w)
    assert torch.equal(y, expected)
    assert y.grad_fn.name() == expected.grad_fn.name()
    y.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(z.grad, w.grad)
    for p, q in zip(ours.parameters(), torchs.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    sequence = x.expand(2, *x.shape)
    torch.testing.assert_close(ours(sequence), torchs(sequence.flatten(0, 1)).unflatten(0, (2, 3)))


@pytest.mark.parametrize("outputs", INDEX)
@pytest.mark.parametrize("inputs", INDEX)
@kinds
def test_a_pruned_layer_equals_the_masked_dense_one_and_dormant_gradients_are_exactly_zero(kind, inputs, outputs):
    ours, torchs, full = grouped(kind, inputs, outputs)
    leaf = full.clone().requires_grad_()
    expected = masked(torchs, ours, leaf)
    narrow = full[:, ours.in_group.active].requires_grad_()
    y = ours(narrow)
    assert relative_l2(y, expected) <= 2e-6
    assert torch.equal(ours(full), y)
    assert torch.equal(ours(full.expand(2, *full.shape)).flatten(0, 1), torch.cat([y, y]))
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad)
    assert relative_l2(narrow.grad, leaf.grad[:, ours.in_group.active]) <= 2e-6
    for p, q in zip(ours.parameters(), torchs.parameters(), strict=True):
        assert relative_l2(p.grad, q.grad) <= 2e-6
        assert not p.grad[q.grad == 0].any()


@pytest.mark.parametrize("spike_input", [None, True, False])
def test_spikes_over_one_dimension_are_kept_as_bits(spike_input):
    ours, _, x = grouped("Conv1d", "some", "some")
    ours.spike_input = spike_input
    x, saved = x[:, :4].contiguous(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda z: saved.append(z) or z, lambda z: z):
        ours(x)
    assert (torch.uint8 in {z.dtype for z in saved}) == (spike_input is not False)
    if spike_input:
        with pytest.raises(ValueError, match=r"^x: expected zeros and ones, since ChannelConv1d\(8, 8, kernel_size"):
            ours(x * 0.5)


@pytest.mark.parametrize("layout", ["channels apart", "channels side by side"])
@pytest.mark.parametrize("groups", ["none", "some active"])
def test_a_signal_in_either_layout_comes_back_in_it(layout, groups):
    ours, torchs, x = pair("Conv1d", 8, 8, 3, stride=2) if groups == "none" else grouped("Conv1d", "all", "some")
    if layout != "channels apart":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    y = ours(x)
    torch.testing.assert_close(y, torchs(x) if groups == "none" else masked(torchs, ours, x))
    assert y.is_contiguous() == (layout == "channels apart")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_transposed_convolution_keeps_the_layout_of_maps(layout):
    ours, torchs, x = grouped("ConvTranspose2d", "some", "some")
    ours, x = ours.to(memory_format=layout), x.contiguous(memory_format=layout)
    y = ours(x)
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, masked(torchs, ours, x))
    y.sum().backward()
    assert ours.weight.grad.stride() == ours.weight.stride()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, "same", "valid"])
@pytest.mark.parametrize("kernel", [3, 2])
def test_padding_modes_over_one_dimension(padding_mode, padding, kernel):
    ours, torchs, x = pair("Conv1d", 8, 6, kernel, padding=padding, padding_mode=padding_mode)
    for frames in (x, x.expand(2, *x.shape)):
        torch.testing.assert_close(ours(frames), torchs(frames.flatten(0, -3)).unflatten(0, frames.shape[:-2]))


@kinds
def test_a_depthwise_layer_keeps_each_channel_with_its_filter(kind):
    ours, torchs, x = grouped(kind, "some", "some", groups=8)
    y = ours(x[:, INDEX["some"]])
    torch.testing.assert_close(y, torchs(x)[:, INDEX["some"]])
    y.sum().backward()
    assert not ours.weight.grad[[1, 4, 5, 6]].any()
    assert ours.weight.grad[INDEX["some"]].abs().sum() > 0
    ours.in_group.set_active([0, 1, 2, 3])
    with pytest.raises(ValueError, match="expected the same indices for a depthwise convolution"):
        ours(x)


@kinds
def test_grouped_layers_run_while_all_channels_are_active(kind):
    ours, torchs, x = grouped(kind, "all", "all", groups=4)
    assert torch.equal(ours(x), torchs(x))
    for group, name in ((ours.in_group, "in_channels"), (ours.out_group, "out_channels")):
        group.set_active([0, 2])
        with pytest.raises(ValueError, match=f"{name}: expected None for a grouped, not depthwise convolution"):
            ours(x)
        group.set_active(range(8))


@pytest.mark.parametrize("inputs", ["all", "some"])
@kinds
def test_autocast_runs_in_its_dtype_and_returns_full_precision_gradients(kind, inputs):
    ours, torchs, x = grouped(kind, inputs, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = ours(x)
        expected = masked(torchs, ours, x)
    assert y.dtype == torch.bfloat16
    assert relative_l2(y.float(), expected.float()) <= 1e-2
    y.float().sum().backward()
    assert {p.grad.dtype for p in ours.parameters()} == {torch.float32}


@pytest.mark.parametrize("inputs", ["all", "some"])
@pytest.mark.parametrize("start", [(0,), (2, 0)], ids=["frames", "sequence"])
@kinds
def test_empty_batches(kind, start, inputs):
    ours, torchs, x = grouped(kind, inputs, inputs)
    y = ours(x.new_zeros(*start, *x.shape[1:]))
    assert y.shape == (*start, ours.out_group.num_active, *torchs(x).shape[2:])
    y.sum().backward()
    assert not ours.weight.grad.any()


@kinds
def test_a_layer_prunes_and_regrows_with_identical_parameters(kind):
    ours, torchs, x = grouped(kind, "all", "all")
    parameters = list(ours.parameters())
    for active in ([0, 2], [5], range(8)):
        ours.in_group.set_active(active)
        ours.out_group.set_active(active)
        with torch.inference_mode():
            torch.testing.assert_close(ours(x), masked(torchs, ours, x))
    assert torch.equal(ours(x), torchs(x))
    assert all(a is b for a, b in zip(parameters, ours.parameters(), strict=True))


@kinds
def test_layers_made_in_inference_mode_run(kind):
    with torch.inference_mode():
        ours, torchs, x = grouped(kind, "some", "some")
        torch.testing.assert_close(ours(x), masked(torchs, ours, x))
        ours.weight.mul_(2)  # seen, though nothing counts changes of such a weight
        torchs.weight.mul_(2)
        torch.testing.assert_close(ours(x), masked(torchs, ours, x))


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@kinds
def test_copies_compute_the_same(kind, copier):
    ours, _, x = grouped(kind, "some", "one")
    y = ours(x)
    twin = copier(ours)
    ours.in_group.set_active(range(8))
    assert torch.equal(twin(x), y)


@pytest.mark.parametrize("inputs", ["all", "some"])
@kinds
def test_on_the_meta_device(kind, inputs):
    ours, torchs, x = grouped(kind, inputs, inputs)
    expected = masked(torchs, ours, x).shape
    assert ours.to("meta")(x.to("meta")).shape == expected


@kinds
def test_gradients_of_gradients(kind):
    """A gradient penalty, as in test_derivatives.py."""
    ours, torchs, x = grouped(kind, "some", "some")
    grads = []
    for critic in (ours, lambda z: masked(torchs, ours, z)):
        z = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(critic(z).square().sum(), z, create_graph=True)
        ((g.flatten(1).norm(dim=1) - 1) ** 2).mean().backward()
    for p, q in zip(ours.parameters(), torchs.parameters(), strict=True):
        grads.append(relative_l2(p.grad, q.grad))
    assert max(grads) <= 1e-5


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@kinds
def test_gradients_per_sample(kind):
    ours, _, x = grouped(kind, "some", "some")
    parameters = dict(ours.named_parameters())

    def loss(parameters, sample):
        return torch.func.functional_call(ours, parameters, (sample[None],)).square().sum()

    grads = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for n in range(3):
        ours.zero_grad()
        ours(x[n : n + 1]).square().sum().backward()
        for name, p in parameters.items():
            assert relative_l2(grads[name][n], p.grad) <= 1e-5


@pytest.mark.parametrize("kind", ["ConvTranspose1d", "ConvTranspose2d"])
def test_output_size_takes_the_place_of_output_padding(kind):
    ours, torchs, x = pair(kind, 8, 6, 3, stride=2, padding=1)
    size = [2 * n - 1 + (i == 0) for i, n in enumerate(x.shape[2:])]
    assert torch.equal(ours(x, size), torchs(x, size))
    assert torch.equal(ours(x, output_size=[3, 6, *size]), torchs(x, size))
    assert torch.equal(ours(x.expand(2, *x.shape), size)[0], torchs(x, size))


def one(**named):
    return nn.ChannelConv1d(8, 6, 3, **named)


def transposed(**named):
    return nn.ChannelConvTranspose2d(8, 6, 3, **named)


X1, X2 = torch.zeros(2, 8, 9), torch.zeros(2, 8, 6, 5)
HALF = nn.ChannelGroup(8, "half")
HALF.set_active(range(4))


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: one()(X2), ValueError, r"x: expected 8 active input channels in dimension 2, got .*\(2, 8, 6, 5\)"),
        (lambda: one()(X1[0]), ValueError, r"x: expected a tensor \[M, C, L\] or \[T, N, C, L\], got .*\(8, 9\)"),
        (lambda: one()(X1[:, :7]), ValueError, r"x: expected 8 active input channels in dimension 1, got .*\(2, 7, 9"),
        (lambda: one(in_group=HALF)(X1[:, :3]), ValueError, r"x: expected 4 active .*\(2, 3, 9\)"),
        (lambda: one()(X1[..., :2]), ValueError, r"x: expected room for a kernel of \(3,\), got shape \(2, 8, 2\)"),
        (lambda: one()(X1.double()), TypeError, "weight: expected the dtype of x"),
        (lambda: one()(X1.long()), TypeError, "x: expected a floating-point"),
        (lambda: one()(X1.to("meta")), ValueError, "weight: expected a tensor on meta"),
        (lambda: one()(None), TypeError, "x: expected a tensor"),
        (lambda: one(padding=4, padding_mode="circular")(X1[..., :3]), ValueError, "x: .*room for the circular border"),
        (lambda: one(stride=(1, 2)), ValueError, r"stride: expected one int, got \(1, 2\)"),
        (lambda: one(padding="full"), ValueError, "padding: expected one of same, valid or an int, got 'full'"),
        (lambda: one(spike_input=1), TypeError, "spike_input: expected a bool"),
        (lambda: one(in_group=nn.ChannelGroup(6)), ValueError, "in_group: expected a group of 8 channels"),
        (lambda: one(path="winograd")(X1), ValueError, "path: 'winograd' expected a float32 3x3"),
        (lambda: transposed()(X1), ValueError, r"x: expected a tensor \[M, C, H, W\] or \[T, N, C, H, W\], got"),
        (lambda: transposed()(X2[:, :7]), ValueError, r"x: expected 8 active input channels in dimension 1"),
        (
            lambda: transposed(in_group=HALF)(X2[:, :3]),
            ValueError,
            "x: expected 4 active input channels in dimension 1",
        ),
        (lambda: transposed()(X2.double()), TypeError, "x: expected the dtype of the weight, torch.float32"),
        (lambda: transposed()(X2.long()), TypeError, "x: expected a floating-point"),
        (lambda: transposed()(X2.to("meta")), ValueError, "x: expected a tensor on cpu"),
        (lambda: transposed()(X2.to_sparse()), TypeError, "x: expected a floating-point tensor"),
        (lambda: transposed()([1]), TypeError, r"x: expected a tensor \[M, C, H, W\]"),
        (lambda: transposed(padding=5)(X2[..., :1]), ValueError, "x: expected an output that padding"),
        (lambda: transposed(stride=2)(X2, [15, 11]), ValueError, r"output_size: expected \[13, 11\] to \[14, 12\] for"),
        (lambda: transposed(stride=2)(X2, (13, 11, 2)), ValueError, "output_size: expected one int or two"),
        (lambda: transposed(stride=2)(X2, 13.0), TypeError, "output_size: expected an int"),
        (lambda: transposed(output_padding=1), ValueError, "output_padding: expected less than stride 1 or dilation 1"),
        (lambda: transposed(padding="same"), TypeError, "padding: expected an int"),
        (lambda: transposed(padding_mode="reflect"), ValueError, "padding_mode: expected one of zeros"),
        (lambda: transposed(groups=3), ValueError, "groups: expected a divisor of 8 input and 6 output channels"),
        (lambda: transposed(out_group=HALF), ValueError, "out_group: expected a group of 6 channels"),
        (lambda: transposed(spike_input=True), TypeError, "spike_input"),
    ],
)
def test_bad_arguments_are_named(make, error, says):
    with pytest.raises(error, match=says):
        make()


@kinds
def test_explain_says_what_a_layer_runs(kind):
    ours, _, _ = grouped(kind, "some", "all")
    (row,) = nn.explain(ours)
    assert (row.kind, row.path, row.inputs, row.outputs) == (f"Channel{kind}", "gathered", "4/8", "8/8")
    assert (row.backend == "torch") == (kind != "Conv1d")
    ours.in_group.set_active(range(8))
    assert nn.explain(ours)[0].path == "dense"
