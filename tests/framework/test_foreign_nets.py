"""The foreign networks are what they are said to be: they run, fire, learn, forget when reset, and have their traps."""

from __future__ import annotations

import copy
import fnmatch
import math
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests.framework.foreign import NETS, ForeignNet, research
from tests.framework.foreign import spikingjelly_nets as sj
from tests.framework.foreign import spikingjelly_old as old
from tests.framework.foreign.net import matching, normal, tensors

LAYERS = (nn.modules.conv._ConvNd, nn.Linear, _BatchNorm)


@pytest.fixture(params=NETS)
def net(request) -> ForeignNet:
    found = NETS[request.param]
    found.skip_unless_installed()
    return found


def named(name: str) -> tuple[ForeignNet, nn.Module]:
    """A network of the registry, built."""
    net = NETS[name]
    net.skip_unless_installed()
    return net, net.build()


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


def differing(a: Tensor, b: Tensor) -> float:
    """Which part of the spikes of ``a`` and ``b`` is another, of those that one of them has."""
    return float((a != b).sum() / torch.maximum(a, b).sum())


def stepped(decay: float, fed: float, x: Tensor, *, soft: bool, above: bool = False) -> Tensor:
    """Spikes of a leaky neuron with threshold 1 that is reset at once, over x [T, ...]."""
    v, spikes = torch.zeros_like(x[0]), []
    for step in x:
        v = v * decay + step * fed
        s = ((v > 1) if above else (v >= 1)).float()
        v = v - s if soft else v * (1 - s)
        spikes.append(s)
    return torch.stack(spikes)


def test_each_origin_of_the_specification_is_there():
    assert len(NETS) >= 12
    assert {net.package for net in NETS.values()} == {"", "spikingjelly", "snntorch", "norse"}
    assert all(net.trap for net in NETS.values())


def test_two_builds_are_equal_and_draw_nothing(net):
    state = torch.get_rng_state()
    one, two = net.build(), net.build()
    assert torch.equal(torch.get_rng_state(), state)
    assert one.training
    assert same(tuple(one.state_dict().values()), tuple(two.state_dict().values()))
    assert same(tensors(net.example()), tensors(net.example()))


def test_patterns_name_neurons_and_layers(net):
    model = net.build()
    groups = (net.convertible, net.refused, net.either)
    for pattern in (*sum(groups, ()), *net.layers, *net.quiet):
        assert matching(model, (pattern,)), pattern
    names = [name for group in groups for name in matching(model, group)]
    assert len(names) == len(set(names)) == len(net.neurons(model))
    assert all(isinstance(layer, LAYERS) for layer in matching(model, net.layers).values())
    assert not any(isinstance(neuron, LAYERS) for neuron in net.neurons(model).values())


def test_a_pass_is_the_same_after_a_reset_and_a_state_is_kept_without(net):
    model = net.build()
    outputs, spikes = net.run(model, net.example())
    if net.keeps_state:
        assert not same(net.run(model, net.example())[0], outputs)
        net.reset(model)
    again, same_spikes = net.run(model, net.example())
    assert same(again, outputs)
    assert same(tuple(spikes.values()), tuple(same_spikes.values()))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_every_neuron_fires_ones(net, training):
    model = net.build().train(training)
    _, spikes = net.run(model, net.example())
    for name, fired in spikes.items():
        assert set(fired.unique().tolist()) <= {0.0, 1.0}, name
        quiet = any(fnmatch.fnmatchcase(name, pattern) for pattern in net.quiet)
        assert quiet or 0.05 <= fired.mean() <= 0.5, (name, float(fired.mean()))


def test_every_parameter_has_a_gradient(net):
    model = net.build()
    outputs, _ = net.run(model, net.example())
    sum(output.square().sum() for output in outputs).backward()
    for name, parameter in model.named_parameters():
        idle = any(fnmatch.fnmatchcase(name, pattern) for pattern in net.idle)
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert bool(parameter.grad.any()) != idle, name


def test_a_copy_computes_the_same(net):
    model = net.build()
    twin = copy.deepcopy(model)
    assert same(net.run(twin, net.example())[0], net.run(model, net.example())[0])


# --- SpikingJelly 2.0


def test_torchvision_is_hidden_inside_alone(monkeypatch):
    present = object()
    monkeypatch.setitem(sys.modules, "torchvision", present)
    with sj.without_torchvision():
        assert sys.modules["torchvision"] is not present
    assert sys.modules["torchvision"] is present
    assert "torchvision._internally_replaced_utils" not in sys.modules


@pytest.mark.parametrize(("name", "adds"), [("sj_sew_resnet18_add", True), ("sj_sew_resnet18_iand", False)])
def test_what_sew_blocks_add_is_no_spikes_and_what_they_mask_is(name, adds):
    net, model = named(name)
    most = []
    for block in matching(model, ("layer?.?",)).values():
        block.register_forward_hook(lambda _, inputs, output: most.append(float(output.detach().max())))
    net.run(model, net.example())
    assert len(most) == 8
    assert max(most) >= 2 if adds else max(most) == 1


def test_sew_resnet_asks_its_pool_for_the_step_mode():
    _, model = named("sj_sew_resnet18_add")
    model.avgpool = nn.AdaptiveAvgPool2d((1, 1))
    model.fc = nn.Identity()
    with pytest.raises(AttributeError, match="step_mode"):
        model.eval()(normal(2, 3, 32, 32, seed=0)[None])


def test_plif_keeps_w_with_the_neuron_and_the_mask_in_a_nested_dict():
    net, model = named("sj_plif_cifar10dvs")
    assert "conv_fc.2.w" in model.state_dict()
    dropout = model.conv_fc[17]
    assert dropout._memories == {"mask": None}
    net.run(model, net.example())
    mask = dropout._memories["mask"]
    assert mask.shape[0] == sj.N, "one for all steps"
    net.run(model, net.example(), seed=1)
    assert dropout._memories["mask"] is mask
    net.reset(model)
    assert dropout._memories == {"mask": None}


def test_ms_resnet_is_no_fx_graph_and_says_nothing_of_its_blocks_where_gains_are_zero():
    net, model = named("sj_ms_resnet18_zero_gain")
    with pytest.raises(torch.fx.proxy.TraceError, match="control flow"):
        torch.fx.symbolic_trace(model)
    neuron = model.layer1[0].spike1
    assert (neuron.tau, neuron.v_threshold, neuron.decay_input) == (4 / 3, 0.5, False)
    assert (type(neuron.surrogate_function).__name__, neuron.surrogate_function.alpha) == ("Rect", 2.0)
    outputs, spikes = net.run(model, net.example())
    net.reset(model)
    with torch.no_grad():
        model.layer2[1].conv1.weight.neg_()
    wrong, wrong_spikes = net.run(model, net.example())
    assert differing(spikes["layer2.1.spike2"], wrong_spikes["layer2.1.spike2"]) > 0.5
    assert same(wrong, outputs)


def test_spikformer_has_frames_with_as_many_channels_as_rows():
    net, model = named("sj_spikformer_cifar10")
    seen = []
    for norm in (module for module in model.modules() if isinstance(module, _BatchNorm)):
        norm.register_forward_hook(lambda _, inputs, output: seen.append(tuple(inputs[0].shape)))
    net.run(model, net.example())
    assert (sj.T * sj.N, 32, 32, 32) in seen
    assert any(len(shape) == 3 for shape in seen), "tokens"


def test_ottt_neurons_are_lif_neurons_with_another_gradient_and_a_list():
    net, model = named("sj_ottt_vgg11")
    neuron = model.features[1]
    lif = sj.library("neuron").LIFNode
    assert isinstance(neuron, lif)
    assert type(neuron) is not lif
    twin = lif(neuron.tau, neuron.decay_input, neuron.v_threshold, neuron.v_reset, neuron.surrogate_function, True)
    gradients, spikes = [], []
    for one in (neuron, twin):
        x = (normal(6, 2, 3, seed=1) + 0.5).requires_grad_()
        out = [one(step) for step in x]
        assert isinstance(out[0], list) == (one is neuron)
        spikes.append(torch.stack([step[0] if isinstance(step, list) else step for step in out]))
        (spikes[-1] * normal(6, 2, 3, seed=2)).sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*spikes)
    assert (gradients[0] - gradients[1]).abs().max() > 0.1 * gradients[1].abs().max()
    net.reset(model)
    assert isinstance(model.eval().features[1](normal(2, 3, seed=3)), Tensor)


# --- SpikingJelly 0.0.0.0.x


def test_old_classes_are_where_imports_look_for_them():
    before = {name for name in sys.modules if name.startswith("spikingjelly")}
    with old.installed():
        from spikingjelly.cext.neuron import MultiStepParametricLIFNode as Extension
        from spikingjelly.clock_driven import functional, layer
        from spikingjelly.clock_driven.neuron import MultiStepParametricLIFNode
    assert {name for name in sys.modules if name.startswith("spikingjelly")} == before
    assert (layer.SeqToANNContainer, functional.reset_net) == (old.SeqToANNContainer, old.reset_net)
    for found in (Extension, MultiStepParametricLIFNode):
        assert found.__qualname__ == "MultiStepParametricLIFNode"
    assert Extension.__module__ == "spikingjelly.cext.neuron"
    assert MultiStepParametricLIFNode.__module__ == "spikingjelly.clock_driven.neuron"
    assert Extension().w.shape == (1,)
    assert MultiStepParametricLIFNode().w.shape == ()


def test_old_sew_block_adds_into_the_neurons_output():
    net, model = named("old_sew_cifar10dvs")
    neuron = model.stages[1].body[1][1]
    assert neuron.surrogate_function == "ATan"
    kept = []
    neuron.register_forward_hook(lambda _, inputs, output: kept.append((output, output.detach().clone())))
    net.run(model, net.example())
    ((written, spikes),) = kept
    assert spikes.max() == 1
    assert written.max() == 2
    assert written.shape[:2] == (5, 3), "[N, T] is turned"


def test_old_charge_multiplies_where_the_new_one_divides():
    x = normal(8, 4, 500, seed=4)
    for tau, equal in ((2.0, True), (3.0, False)):
        neuron = old.MultiStepLIFNode(tau=tau, decay_input=False, v_threshold=1e9)
        neuron(x)
        v = torch.zeros(4, 500)
        for step in x:
            v = v - v / tau + step
        assert torch.equal(neuron.v, v) == equal
        torch.testing.assert_close(neuron.v, v)


# --- research repositories


def test_tet_pool_is_one_object_in_four_places():
    _, model = named("tet_vggsnn")
    pools = [stage for stage in model.stages if isinstance(stage, research.Framewise)]
    assert len(pools) == 4
    assert len(set(map(id, pools))) == 1
    assert [name for name, module in model.named_modules() if module is pools[0]] == ["stages.2"]


def test_tet_tau_is_a_decay_and_the_threshold_does_not_fire():
    neuron = research.Spiking()
    assert neuron.tau == 0.5
    x = normal(5, 9, 200, seed=5)
    spikes = neuron(x).transpose(0, 1)
    assert torch.equal(spikes, stepped(0.5, 1.0, x.transpose(0, 1), soft=False, above=True))
    as_time_constant = stepped(1 - 1 / 0.5, 1 / 0.5, x.transpose(0, 1), soft=False)
    assert differing(spikes, as_time_constant) > 0.1
    assert not neuron(torch.ones(1, 1, 1)).any()


def test_nda_changes_the_callers_tensor_so_that_a_second_pass_has_one_step():
    net, model = named("nda_vgg11")
    x = net.example()
    assert net.call(model, x).shape == (3, 4, 10)
    assert x.shape == (3, 1, 3, 16, 16)
    assert net.call(model, x).shape == (3, 1, 10)
    with pytest.raises(RuntimeError, match="leaf"):
        net.call(model, net.example().requires_grad_())


def test_nda_copy_reads_the_steps_of_its_original():
    net, model = named("nda_vgg11")
    twin = copy.deepcopy(model)
    model.steps = 2
    assert twin.steps == 4
    assert net.call(twin, net.example()).shape[1] == 2


def test_nda_norm_is_a_batch_norm_over_all_frames_and_the_gradient_a_box_without_border():
    norm = research.NormOverTime(3)
    assert isinstance(norm, nn.BatchNorm2d)
    x = normal(2, 5, 3, 4, 4, seed=6)
    plain = nn.BatchNorm2d(3)
    plain.load_state_dict(norm.state_dict())
    assert torch.equal(norm(x), plain(x.flatten(0, 1)).unflatten(0, (2, 5)))
    for fire, at_border in ((research.step_of_width(0.5), 0.0), (research.Box(0.5), 2.0)):
        u = torch.tensor([-0.3, -0.25, 0.0, 0.2], requires_grad=True)
        spikes = fire(u)
        spikes.sum().backward()
        assert spikes.tolist() == [0, 0, 1, 1]
        assert u.grad.tolist() == [0, at_border, 2, 2]


def test_clif_names_mislead_and_the_surrogate_is_shared():
    net, model = named("clif_vgg11_bptt")
    neuron = model.stage0[2]
    assert {"forward", "neuronal_charge", "neuronal_fire", "neuronal_reset"}.isdisjoint(vars(type(neuron)))
    x = normal(8, 4, 300, seed=7)
    neuron.reset()
    spikes = torch.stack([neuron(step) for step in x])
    assert torch.equal(spikes, stepped(0.5, 1.0, x, soft=True))
    assert differing(spikes, stepped(1.0, 1.0, x, soft=True)) > 0.1, "it is not an integrator"
    assert len({id(module.surrogate_function) for module in net.neurons(model).values()}) == 1
    complementary = research.ComplementaryNeuron()
    assert isinstance(complementary, old.LIFNode)
    assert differing(spikes, torch.stack([complementary(step) for step in x])) > 0.05
    assert set(complementary._memories) == {"v", "v_threshold", "v_reset", "m"}


# --- snnTorch


@pytest.fixture
def snntorch() -> Iterator[object]:
    return pytest.importorskip("snntorch", reason="snntorch is not installed")


def leaky(neuron: nn.Module, x: Tensor) -> Tensor:
    """Spikes over x [T, ...] of a neuron that returns (spikes, ..., membrane)."""
    return torch.stack([neuron(step)[0] for step in x])


def test_snntorch_default_is_no_soft_reset(snntorch):
    x = normal(32, 4, 200, seed=8) / 2 + 0.1
    spikes = leaky(snntorch.Leaky(beta=0.9), x)
    assert differing(spikes, stepped(0.9, 1.0, x, soft=True, above=True)) > 0.05
    # The amount is taken behind the decay: as much as threshold / beta at once.
    v, exact = torch.zeros_like(x[0]), []
    for step in x.double():
        v = v * 0.9 + step
        exact.append((v > 1).float())
        v = v - exact[-1] / 0.9
    assert differing(spikes, torch.stack(exact)) < 1e-3


def test_snntorch_zero_is_a_hard_reset_for_leaky_but_not_for_synaptic(snntorch):
    x = normal(32, 4, 200, seed=9) / 2
    hard = stepped(0.9, 1.0, x, soft=False, above=True)
    assert differing(leaky(snntorch.Leaky(beta=0.9, reset_mechanism="zero"), x), hard) < 1e-3
    # Without a filter, a synaptic neuron is a leaky one, but for the input that it wipes.
    unfiltered = snntorch.Synaptic(alpha=0.0, beta=0.9, reset_mechanism="zero")
    assert differing(leaky(unfiltered, x), hard) > 0.05


def test_snntorch_reset_reaches_other_networks_and_misses_what_is_nested(snntorch):
    net, model = named("snntorch_tutorial6")
    other = net.build()
    net.run(model, net.example())
    net.run(other, net.example())
    net.reset(nn.Sequential(model))  # the neurons are no children of this
    assert model[2].mem.any()
    net.reset(model)
    assert not model[2].mem.any()
    assert not other[2].mem.any()


def test_snntorch_reset_misses_copies(snntorch):
    net, model = named("snntorch_tutorial6")
    twin = copy.deepcopy(model)
    net.run(twin, net.example())
    net.reset(twin)  # only constructors enter the list of neurons that is gone through
    assert twin[2].mem.any()


def test_snntorch_membranes_meet_the_threshold_and_do_not_fire(snntorch):
    net, model = named("snntorch_tutorial6")
    ties = []
    for name, neuron in net.neurons(model).items():
        neuron.register_forward_hook(
            lambda module, inputs, output, name=name: ties.append(
                (name, module.mem == module.threshold, output[0] if isinstance(output, tuple) else output)
            )
        )
    net.run(model, net.example())
    for wanted in net.neurons(model):
        assert sum(int(tie.sum()) for name, tie, _ in ties if name == wanted) > 0, wanted
    assert not any(spikes[tie].any() for _, tie, spikes in ties)


def test_snntorch_fast_sigmoid_is_the_published_one(snntorch):
    _, model = named("snntorch_tutorial6")
    u = torch.linspace(-1, 1, 9, requires_grad=True)
    model[2].spike_grad(u).sum().backward()
    torch.testing.assert_close(u.grad, 1 / (1 + 25 * u.detach().abs()).square())


@pytest.mark.parametrize("name", ["snntorch_tutorial5", "snntorch_conv_loop", "snntorch_synaptic"])
def test_snntorch_neurons_keep_the_graph_of_the_last_call_so_that_no_copy_is_made(name):
    net, model = named(name)
    net.run(model, net.example())
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)


# --- norse


@pytest.fixture
def norse() -> object:
    return pytest.importorskip("norse.torch", reason="norse is not installed")


def test_norse_ignores_alpha(norse):
    from norse.torch.functional.lif_box import LIFBoxParameters

    gradients = []
    for alpha in (1.0, 100.0):
        x = normal(4, 50, seed=10).requires_grad_()
        norse.LIFBoxCell(LIFBoxParameters(alpha=torch.as_tensor(alpha)))(x)[0].sum().backward()
        gradients.append(x.grad)
    assert gradients[0].any()
    assert torch.equal(*gradients)


def test_norse_container_writes_to_the_list_of_states_it_is_given(norse):
    net, model = named("norse_sequential")
    x = net.example()
    _, state = model(x[0])
    before = list(state)
    _, after = model(x[1], state)
    assert after is state
    assert before[1] is not after[1]
    assert [entry is not None for entry in state] == [index in (1, 4, 7) for index in range(9)]


def test_norse_cells_start_at_the_leak_and_leak_elsewhere_than_they_reset_to(norse):
    _, model = named("norse_sequential")
    cell = model[4]
    x = torch.zeros(2, 3)
    assert cell.initial_state(x).v.shape == ()
    spikes, state = cell(x)
    assert not spikes.any()
    torch.testing.assert_close(state.v, torch.full((2, 3), 0.2))
    _, state = cell(x + 100)
    torch.testing.assert_close(state.v, torch.full((2, 3), -0.1))
    assert math.isclose(model[1].dt * float(model[1].p.tau_mem_inv), 0.4, rel_tol=1e-6)


def test_norse_does_not_fire_on_the_threshold(norse):
    spikes, state = norse.IAFCell()(torch.ones(3))
    assert not spikes.any()
    assert (state.v == 1).all()
