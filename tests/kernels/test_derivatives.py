"""Derivatives beyond one backward pass: of second order, in forward mode, by the transforms of torch.func. Right, or an
error; never a silent zero."""

from functools import partial

import pytest
import torch
from torch.autograd import forward_ad

from sca_kernels import functional as F
from sca_kernels import nn
from sca_kernels.backends import registry
from sca_kernels.testing import activation, relative_l2

LISTS = {
    "all": (None, None),
    "some": (torch.tensor([0, 2, 3, 7]), torch.tensor([1, 4, 5, 6])),
    "depthwise": (torch.tensor([0, 2, 3, 6]), torch.tensor([0, 2, 3, 6])),
}
WIDTH = 8


def convolutions(lists, full_input, full_output, bias, backend, path):
    """Ours and torch's, as functions of x, weight and bias."""
    inputs, outputs = LISTS[lists]
    groups = WIDTH if lists == "depthwise" else 1

    def ours(x, weight, b):
        return F.channel_conv2d(
            x,
            weight,
            b if bias else None,
            padding=1,
            groups=groups,
            in_channels=inputs,
            out_channels=outputs,
            full_input=full_input,
            full_output=full_output,
            spike_input=False,
            backend=backend,
            path=path,
        )

    def torchs(x, weight, b):
        x = x[:, inputs] if full_input and inputs is not None else x
        b = b if bias else None
        if outputs is not None:
            weight, b = weight[outputs], None if b is None else b[outputs]
        if groups == 1 and inputs is not None:
            weight = weight[:, inputs]
        y = torch.conv2d(x, weight, b, padding=1, groups=1 if groups == 1 else len(weight))
        if full_output and outputs is not None:
            y = y.new_zeros(y.shape[0], WIDTH, *y.shape[2:]).index_copy(1, outputs, y)
        return y

    return ours, torchs


def problem(lists, full_input):
    width = WIDTH if full_input or LISTS[lists][0] is None else len(LISTS[lists][0])
    x = torch.randn(2, width, 6, 5).contiguous(memory_format=torch.channels_last)
    return x, torch.randn(WIDTH, 1 if lists == "depthwise" else WIDTH, 3, 3), torch.randn(WIDTH)


CASES = [
    pytest.param(lists, full_input, full_output, bias, path, id=f"{lists}-{kind}-{path}")
    for lists in LISTS
    for kind, full_input, full_output, bias in (("narrow", False, False, True), ("wide", True, True, False))
    for path in ("gathered", "winograd", "implicit")
    if not (lists == "depthwise" and path == "winograd")
]


def prepared(target, lists, full_input, full_output, bias, path):
    backend, device = target
    if path not in (*registry()[backend].paths, "gathered"):
        pytest.skip(f"{backend} has no path {path}")
    if device != "cpu":
        pytest.skip("lists of this module are on the CPU")
    return convolutions(lists, full_input, full_output, bias, backend, path), problem(lists, full_input)


def agree(ours, torchs, tolerance=1e-4):
    for a, b in zip(ours, torchs, strict=True):
        assert relative_l2(a, b) <= tolerance


@pytest.mark.parametrize(("lists", "full_input", "full_output", "bias", "path"), CASES)
def test_hessian_vector_products_of_a_convolution(target, lists, full_input, full_output, bias, path):
    functions, tensors = prepared(target, lists, full_input, full_output, bias, path)
    results = []
    for function in functions:
        leaves = [z.clone().requires_grad_() for z in tensors[: 3 if bias else 2]]
        y = function(*leaves, *tensors[len(leaves) :])
        grads = torch.autograd.grad(y.pow(3).sum(), leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in grads), leaves))
    agree(*results)


@pytest.mark.parametrize(("lists", "full_input", "full_output", "bias", "path"), CASES)
def test_forward_mode_of_a_convolution(target, lists, full_input, full_output, bias, path):
    functions, tensors = prepared(target, lists, full_input, full_output, bias, path)
    tangents = tuple(torch.randn_like(z) for z in tensors)
    agree(*(torch.func.jvp(function, tensors, tangents) for function in functions))

    def dual(function):
        with forward_ad.dual_level():
            y = function(*map(forward_ad.make_dual, tensors, tangents))
            return forward_ad.unpack_dual(y)

    agree(*map(dual, functions))


@pytest.mark.parametrize(("lists", "full_input", "full_output", "bias", "path"), CASES[:6])
def test_transforms_of_a_convolution(target, lists, full_input, full_output, bias, path):
    functions, (x, weight, b) = prepared(target, lists, full_input, full_output, bias, path)

    def results(function):
        def loss(x, weight):
            return function(x, weight, b).pow(3).sum()

        yield torch.func.grad(loss)(x, weight)
        yield torch.func.vmap(torch.func.grad(loss, argnums=1), (0, None))(x[:, None], weight)
        yield torch.func.vmap(function, (None, 0, None))(x, torch.stack([weight, -weight]), b)
        yield torch.func.hessian(loss, argnums=1)(x, weight)
        yield torch.func.vjp(loss, x, weight)[1](torch.tensor(1.0))[0]

    agree(*map(results, functions))


def test_gradient_penalty_through_a_module():
    """WGAN-GP (Gulrajani et al., 2017): the critic's gradient at its input is part of the loss."""
    group = nn.ChannelGroup(8)
    ours = torch.nn.Sequential(nn.ChannelConv2d(3, 8, 3, out_group=group), nn.ChannelConv2d(8, 4, 3, in_group=group))
    torchs = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 4, 3))
    torchs.load_state_dict(ours.state_dict())
    x = torch.rand(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    for critic in (ours, torchs):
        z = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(critic(z).square().sum(), z, create_graph=True)
        ((g.flatten(1).norm(dim=1) - 1) ** 2).mean().backward()
    agree([p.grad for p in ours.parameters()], [p.grad for p in torchs.parameters()])


def test_second_order_of_spikes_kept_as_bits_is_right_or_refused():
    x, weight = (torch.rand(2, 4, 6, 6) < 0.3).float(), torch.randn(5, 4, 3, 3)
    results = []
    ours = partial(F.channel_conv2d, spike_input=True)
    for convolve in (ours, torch.conv2d):
        w = weight.clone().requires_grad_()
        (g,) = torch.autograd.grad(convolve(x, w).pow(3).sum(), w, create_graph=True)
        results.append(torch.autograd.grad(g.square().sum(), w))
    agree(*results)
    z, w = x.clone().requires_grad_(), weight.clone().requires_grad_()
    g_x, g_w = torch.autograd.grad(ours(z, w).pow(3).sum(), (z, w), create_graph=True)
    torch.autograd.grad(g_x.square().sum(), (z, w), retain_graph=True)
    with pytest.raises(RuntimeError, match=r"kept as bits.*spike_input=False"):
        g_w.square().sum().backward()


def lif_sum(x):
    return (F.lif(x).spikes * torch.linspace(1, 2, x.shape[2]).view(-1, 1, 1)).sum()


FORWARD = {
    "torch.func.jvp": lambda x: torch.func.jvp(lif_sum, (x,), (x,)),
    "jacfwd": lambda x: torch.func.jacfwd(lif_sum)(x),
    "hessian": lambda x: torch.func.hessian(lif_sum)(x),
}


@pytest.mark.parametrize("how", FORWARD)
def test_forward_mode_through_a_neuron_is_a_clear_error(how):
    with pytest.raises(RuntimeError, match=r"forward mode \(jvp\) through spiking neurons are not defined"):
        FORWARD[how](torch.randn(2, 1, 2, 2, 2))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_tangents_that_meet_a_neuron_are_an_error_and_others_are_not(requires_grad):
    x = torch.randn(2, 1, 2, 2, 2).requires_grad_(requires_grad)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(RuntimeError, match="forward mode"):
            F.lif(dual)
        with pytest.raises(RuntimeError, match="forward mode"):
            F.batch_norm_lif(dual, None, None, None, None, True)
        assert F.lif(x).spikes.shape == x.shape


def test_second_order_through_a_neuron_is_an_error_under_transforms_too():
    x = torch.randn(2, 1, 2, 2, 2)
    with pytest.raises(RuntimeError, match="second-order gradients"):
        torch.func.grad(lambda z: torch.func.grad(lif_sum)(z).square().sum())(x)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_of_a_neuron(target):
    backend, device = target
    x = activation((4, 2, 3, 5, 5)).to(device)
    factors = torch.linspace(1, 2, 3, device=device).view(3, 1, 1)

    def loss(z):
        return (F.batch_norm_lif(z, None, None, None, None, True, backend=backend).spikes * factors).sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    assert torch.equal(torch.func.grad(loss)(x), expected)
    assert torch.equal(torch.func.vjp(loss, x)[1](torch.tensor(1.0, device=device))[0], expected)
    assert torch.equal(torch.func.vmap(torch.func.grad(loss))(torch.stack([x, -x]))[0], expected)
    assert torch.equal(torch.func.vmap(loss)(torch.stack([x, x]))[1], loss(x))

    def outer(z):
        return torch.func.grad(lambda factor: factor * loss(z))(torch.tensor(1.0, device=device))

    assert torch.equal(torch.func.grad(outer)(x), expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_gradients_per_sample_through_a_network():
    model = torch.nn.Sequential(
        nn.ChannelConv2d(3, 5, 3), nn.BatchNormLIF(5), nn.ChannelConv2d(5, 4, 3), nn.BatchNormPLIF(4)
    ).eval()
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    x = torch.randn(4, 3, 3, 8, 8)

    def loss(parameters, sample):
        return torch.func.functional_call(model, (parameters, buffers), (sample[:, None],)).sum()

    grads = torch.func.vmap(torch.func.grad(loss), (None, 1))(parameters, x)
    for n in range(3):
        model.zero_grad()
        model(x[:, n : n + 1]).sum().backward()
        agree([grads[name][n] for name in parameters], [p.grad for p in parameters.values()])


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_an_ensemble_of_networks_by_vmap(grad):
    group = nn.ChannelGroup(5)
    group.set_active([0, 2, 3])
    make = lambda: torch.nn.Sequential(  # noqa: E731
        nn.ChannelConv2d(3, 5, 3, out_group=group),
        nn.BatchNormLIF(5, group=group),
        nn.ChannelConv2d(5, 4, 3, in_group=group),
        nn.LIF(),
        torch.nn.Flatten(2),
        nn.ChannelLinear(4 * 16, 2),
    ).eval()
    models, x = [make() for _ in range(3)], torch.randn(4, 2, 3, 8, 8)
    parameters, buffers = torch.func.stack_module_state(models)
    with torch.set_grad_enabled(grad):
        y = torch.func.vmap(lambda p, b: torch.func.functional_call(models[0], (p, b), (x,)))(parameters, buffers)
    agree(y, [model(x) for model in models])


@pytest.mark.parametrize("name", ["MaxPool2d", "AvgPool2d"])
def test_pools_have_all_derivatives(name):
    pool, twin = (getattr(library, name)(2) for library in (nn, torch.nn))
    x = torch.randn(2, 3, 6, 6)

    def results(layer):
        yield torch.func.grad(lambda z: layer(z).pow(3).sum())(x)
        yield from torch.func.jvp(layer, (x,), (x,))
        leaf = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(layer(leaf).pow(3).sum(), leaf, create_graph=True)
        yield from torch.autograd.grad(g.square().sum(), leaf)

    agree(results(pool), results(twin))
