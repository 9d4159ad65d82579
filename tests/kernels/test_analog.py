"""Neurons that give out a share of their potential (``nn.set_analog``), and layers that read them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from sca_kernels import nn
from sca_kernels.nn import Activity

TAU, C = 4 / 3, 5


def norm_lif(group: nn.ChannelGroup | None = None) -> nn.BatchNormLIF:
    torch.manual_seed(0)
    module = nn.BatchNormLIF(C, tau=TAU, surrogate="piecewise_quadratic", detach_reset=True, group=group)
    torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    torch.nn.init.normal_(module.bias)
    return module


def current(x: Tensor, module: nn.BatchNormLIF) -> Tensor:
    """What one step of the module integrates, by torch's batch norm."""
    y = torch.nn.functional.batch_norm(x[0], None, None, module.weight, module.bias, training=True)
    return y[None] / TAU


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(1, 6, C, 4, 4, generator=torch.Generator().manual_seed(1))
    return x.to(dtype).requires_grad_()


@pytest.mark.parametrize("share", [1.0, 0.25, 0.0])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=["contiguous", "last"])
def test_analog_is_the_blend_of_rectified_potential_and_spikes_with_its_gradient(share, layout):
    module, x = norm_lif(), images()
    nn.set_analog(module, share)
    upstream = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    out = module(x.to(memory_format=layout))
    grads = torch.autograd.grad((out * upstream).sum(), (x, module.weight, module.bias))
    h = current(x, module)
    torch.testing.assert_close(out, share * h.clamp(min=0) + (1 - share) * (h >= 1).float())
    slope = share * (h > 0) + (1 - share) * (1 - (h - 1).abs()).clamp(min=0)
    expected = torch.autograd.grad(h, (x, module.weight, module.bias), (upstream * slope).detach())
    for got, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_analog_none_is_the_module_as_it_was_made_and_activity_counts_spikes_in_both():
    module, x = norm_lif(), images()
    plain = copy.deepcopy(module)
    counts = []
    for each, share in (module, 1.0), (plain, None):
        each.activity = Activity()
        nn.set_analog(each, share)
        each(x)
        counts.append(each.activity.spike_count)
    assert torch.equal(*counts)
    assert counts[0].sum() > 0
    nn.set_analog(module, None)
    assert torch.equal(module(x), plain(x))


def test_analog_keeps_the_dtype_of_its_input():
    module = norm_lif()
    nn.set_analog(module, 0.5)
    assert module(images(torch.bfloat16)).dtype == torch.bfloat16
    with torch.inference_mode():
        assert module.eval()(images().detach()[:, :0]).shape == (1, 0, C, 4, 4)


def test_probed_dormant_channels_give_zeros_and_have_the_gradient_of_an_open_gate():
    group = nn.ChannelGroup(C)
    group.set_active([0, 3])
    module, x = norm_lif(group), images()
    nn.set_analog(module, 0.5)
    with nn.probing([group]):
        out = module(x)
    assert not out[:, :, group.dormant].any()
    assert out[:, :, group.active].any()
    (gradient,) = torch.autograd.grad(out.sum(), module.weight)
    everything = norm_lif()
    nn.set_analog(everything, 0.5)
    (opened,) = torch.autograd.grad(everything(x).sum(), everything.weight)
    torch.testing.assert_close(gradient, opened)


@pytest.mark.parametrize("active", [None, [0, 2, 3]])
def test_layers_made_for_spikes_read_potentials_exactly(active):
    groups = nn.ChannelGroup(C), nn.ChannelGroup(4)
    if active is not None:
        groups[0].set_active(active)
    conv = nn.ChannelConv2d(C, 4, 3, bias=False, in_group=groups[0], out_group=groups[1], spike_input=True)
    x = torch.rand(2, groups[0].num_active, 6, 6, requires_grad=True)
    with pytest.raises(ValueError, match="zeros and ones"):
        conv(x).sum().backward()
    nn.set_analog(conv, 1.0)
    got = torch.autograd.grad(conv(x).square().sum(), (x, conv.weight))
    weight = conv.weight[:, groups[0].active]
    expected = torch.autograd.grad(torch.nn.functional.conv2d(x, weight).square().sum(), (x, conv.weight))
    for own, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-4)
    nn.set_analog(conv, None)
    with pytest.raises(ValueError, match="zeros and ones"):
        conv(x).sum().backward()


def test_another_share_is_written_to_the_tensor_that_all_have():
    network = torch.nn.Sequential(norm_lif(), nn.LIF(), torch.nn.Linear(2, 2))
    nn.set_analog(network, 1.0)
    before = network[0].analog
    nn.set_analog(network, 0.5)
    assert before is network[0].analog is network[1].analog
    assert before.item() == 0.5
    assert "analog" not in "".join(network.state_dict())
    twin = copy.deepcopy(network)
    nn.set_analog(twin, 0.25)
    assert before.item() == 0.5


def test_compiled_network_takes_another_share_without_compiling_again():
    network = torch.nn.Sequential(norm_lif(), nn.LIF(tau=TAU))
    eager = copy.deepcopy(network)
    compiled, x = torch.compile(network, fullgraph=True, backend="aot_eager"), images()
    for share in 1.0, 0.75:  # the potential alone and a blend are two graphs
        nn.set_analog(network, share)
        nn.set_analog(eager, share)
        torch.testing.assert_close(compiled(x), eager(x))
    nn.set_analog(network, 0.5)
    nn.set_analog(eager, 0.5)
    with torch._dynamo.config.patch(error_on_recompile=True):
        torch.testing.assert_close(compiled(x), eager(x))
    nn.set_analog(network, None)
    assert ((compiled(x) == 0) | (compiled(x) == 1)).all()


def test_share_set_in_inference_mode_is_one_to_train_with():
    module = norm_lif()
    with torch.inference_mode():
        nn.set_analog(module, 0.5)
    module(images()).sum().backward()
    assert module.weight.grad is not None


def test_modules_that_merely_have_such_an_attribute_are_left_alone():
    class Converter(torch.nn.Module):
        analog = "volts"

    network = torch.nn.Sequential(Converter(), nn.LIF())
    nn.set_analog(network, 1.0)
    assert network[0].analog == "volts"


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_analog_refuses_what_is_no_share(share):
    with pytest.raises(ValueError, match=r"share: expected a (finite )?number"):
        nn.set_analog(nn.LIF(), share)
