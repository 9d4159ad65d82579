"""Residual families: structure, direct encoding, pruning with and without the stream, compaction, cost."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sca
from sca import models
from sca.models.residual import ResidualNetwork
from sca.structure.groups import find_groups, parameter_axes
from sca_kernels import functional as F
from sca_kernels import nn as snn

LAYOUTS = {n: family.layouts[n] for n, family in models.MODELS.items() if issubclass(family, ResidualNetwork)}
#: name -> factor that leaves 8 channels in the first stage
WIDTHS = {name: 8 / layout.stages[0][0] for name, layout in LAYOUTS.items()}
T, N, SIZE, CLASSES = 2, 4, 8, 3

each_model = pytest.mark.parametrize("name", WIDTHS)
each_way = pytest.mark.parametrize("prune_stream", [False, True], ids=["inner", "stream"])


def make(name: str, **arguments) -> nn.Module:
    small = {"in_channels": 2, "image_size": SIZE, "num_classes": CLASSES, "time_steps": T, "width": WIDTHS[name]}
    return models.build(name, **{**small, **arguments})


def images() -> Tensor:
    return torch.randn(N, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def loss_of(model: nn.Module) -> Tensor:
    return nn.functional.cross_entropy(model(images()).mean(0), torch.arange(N) % CLASSES)


def cut(model: nn.Module) -> nn.Module:
    """Half of the channels of every prunable group dormant, running statistics that are not those of a fresh one."""
    loss_of(model)
    for members in find_groups(model).values():
        if members.group.prunable:
            channels = members.group.num_channels
            members.group.set_active(torch.randperm(channels)[: channels // 2])
    return model


def weight_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


# --- structure


@each_model
@each_way
def test_build_counts_its_layers_and_trains_every_parameter(name: str, prune_stream: bool) -> None:
    model = make(name, prune_stream=prune_stream)
    layers = [layer for layer in weight_layers(model) if "shortcut" not in layer]
    assert len(layers) == int(re.search(r"\d+$", name)[0])
    assert model(images()).shape == (T, N, CLASSES)
    loss_of(model).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "arguments", "parameters"),
    [
        ("resnet18", {}, 11_173_962),
        ("resnet18", {"num_classes": 1000, "image_size": 224}, 11_689_512),
        ("resnet20", {}, 272_474),
        ("preresnet18", {}, 11_172_170),
        ("sew_resnet18", {"num_classes": 1000, "stem": "imagenet"}, 11_689_512),
    ],
)
def test_build_has_the_parameters_of_the_original(name: str, arguments: dict, parameters: int) -> None:
    assert sum(p.numel() for p in models.build(name, **arguments).parameters()) == parameters


def test_build_resnet19_has_the_widths_of_the_original() -> None:
    model = models.build("resnet19")
    layers = {name: m for name, m in weight_layers(model).items() if "shortcut" not in name}
    convolutions = [m.out_channels for m in layers.values() if isinstance(m, nn.Conv2d)]
    assert convolutions == [128] * 7 + [256] * 6 + [512] * 4
    linears = [(m.in_features, m.out_features) for m in layers.values() if isinstance(m, nn.Linear)]
    assert linears == [(512, 256), (256, 10)]


def conv(x: Tensor, layer: nn.Conv2d) -> Tensor:
    y = nn.functional.conv2d(x.flatten(0, 1), layer.weight, stride=layer.stride, padding=layer.padding)
    return y.unflatten(0, x.shape[:2])


def norm(x: Tensor, layer: nn.Module) -> Tensor:
    y = nn.functional.batch_norm(x.flatten(0, 1), None, None, layer.weight, layer.bias, training=True)
    return y.unflatten(0, x.shape[:2])


def fire(x: Tensor) -> Tensor:
    return F.lif(x).spikes


def resnet_block(x: Tensor, b: nn.Module, halves: bool) -> Tensor:
    shortcut = norm(conv(x, b.shortcut[0]), b.shortcut[1]) if halves else x
    return fire(norm(conv(fire(norm(conv(x, b.conv1), b.neuron1)), b.conv2), b.norm2) + shortcut)


def preresnet_block(x: Tensor, b: nn.Module, halves: bool) -> Tensor:
    spikes = fire(norm(x, b.neuron1))
    shortcut = conv(spikes, b.shortcut) if halves else x
    return conv(fire(norm(conv(spikes, b.conv1), b.neuron2)), b.conv2) + shortcut


def sew_block(x: Tensor, b: nn.Module, halves: bool) -> Tensor:
    shortcut = fire(norm(conv(x, b.shortcut[0]), b.shortcut[1])) if halves else x
    return fire(norm(conv(fire(norm(conv(x, b.conv1), b.neuron1)), b.conv2), b.neuron2)) + shortcut


@pytest.mark.parametrize("halves", [False, True], ids=["identity", "halving"])
@pytest.mark.parametrize(
    ("name", "equation"),
    [("resnet18", resnet_block), ("preresnet18", preresnet_block), ("sew_resnet18", sew_block)],
)
def test_block_is_its_equation_in_plain_torch(name: str, equation: Callable[..., Tensor], halves: bool) -> None:
    model = make(name).double()
    block = model.blocks[2 if halves else 1]
    x = (torch.rand(T, N, 8, SIZE, SIZE) < 0.3).double()
    results = []
    for y in block(x, None) if name == "preresnet18" else block(x), equation(x, block, halves):
        weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
        gradient = torch.autograd.grad((y * weights).sum(), block.conv1.weight)[0]
        results.append((y.detach(), gradient))
    torch.testing.assert_close(*results, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("name", ["resnet18", "preresnet18", "sew_resnet18"])
def test_stem_for_large_images_divides_their_sides_by_four(name: str) -> None:
    model = make(name, image_size=96)
    assert model.config["stem"] == "imagenet"
    assert model.stem(torch.randn(1, N, 2, 96, 96), T).shape[-2:] == (24, 24)
    assert make(name, image_size=96, stem="cifar").stem(torch.randn(1, N, 2, 96, 96), T).shape[-2:] == (96, 96)


@each_model
@pytest.mark.parametrize("neuron", ["if", "lif", "plif"])
def test_build_fires_in_every_layer_at_initialisation(name: str, neuron: str) -> None:
    model = make(name, neuron=neuron, image_size=16, time_steps=4)
    neurons = {n: m for n, m in model.named_modules() if hasattr(m, "activity")}
    for module in neurons.values():
        module.activity = snn.Activity()
    model(torch.randn(8, 2, 16, 16))
    rates = {n: float(m.activity.spike_count.sum() / m.activity.positions.sum()) for n, m in neurons.items()}
    assert all(0.005 < rate < 0.9 for rate in rates.values()), rates


@each_model
def test_still_image_is_a_constant_sequence_whose_first_convolution_runs_once(name: str) -> None:
    model = make(name)
    loss_of(model)
    model.eval()
    frames = []
    model.stem.conv.register_forward_hook(lambda _, inputs, output: frames.append(len(output)))
    x = images()
    torch.testing.assert_close(model(x), model(x.expand(T, *x.shape)), atol=1e-5, rtol=0)
    assert frames == [N, T * N]


@each_model
def test_build_keeps_channels_last_throughout(name: str) -> None:
    model = cut(make(name))
    layouts = {}
    for layer, module in weight_layers(model).items():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, inputs, layer=layer: layouts.update({layer: inputs[0]}))
    model(images().contiguous(memory_format=torch.channels_last))
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in layouts.values())


@each_model
def test_build_trains_in_bfloat16(name: str) -> None:
    model = cut(make(name, prune_stream=True))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images())
    assert logits.dtype == torch.bfloat16
    logits.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_sew_stream_holds_counts_and_the_others_spikes() -> None:
    for name, most in ("sew_resnet18", 3), ("resnet18", 1):
        model = make(name)
        seen = []
        model.blocks[1].register_forward_hook(lambda _, inputs, output, seen=seen: seen.append(output))
        model(images())
        values = set(seen[0].unique().tolist())
        assert values <= set(range(most + 1))
        assert max(values) == most


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet21", {}, f"model: expected one of {', '.join(models.MODELS)}, got 'resnet21'"),
        ("resnet19", {"stem": "imagenet"}, "stem: expected cifar for resnet19, got 'imagenet'"),
        ("resnet18", {"widths": {"conv1": 3}}, "widths: resnet18 has no group named conv1"),
        ("preresnet20", {"neuron": "relu"}, "neuron: expected one of if, lif, plif, got 'relu'"),
        ("sew_resnet18", {"image_size": 0}, "image_size: expected at least 1, got 0"),
    ],
)
def test_build_names_the_argument_that_is_off(name: str, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.build(name, **arguments)


@each_model
@pytest.mark.parametrize(
    "arguments", [{}, {"neuron": "plif", "per_channel": True, "momentum": 0.2}, {"prune_stream": True}], ids=str
)
def test_build_from_config_makes_the_same_architecture(name: str, arguments: dict) -> None:
    model = make(name, **arguments)
    loss_of(model)
    again = models.build(**model.config)
    assert again.config == model.config
    again.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(images()), again.eval()(images()))


# --- groups


@each_model
@each_way
def test_groups_are_free_inside_blocks_and_tied_on_the_stream_on_demand(name: str, prune_stream: bool) -> None:
    groups = find_groups(make(name, prune_stream=prune_stream))
    stages = {g for g in groups if re.fullmatch(r"stage\d", g)}
    inner = {g for g in groups if g.endswith(".conv1")}
    assert len(inner) == sum(blocks for _, blocks in LAYOUTS[name].stages)
    for group in inner:
        roles = groups[group]
        assert (len(roles.producers), len(roles.consumers), len(roles.neurons), len(roles.norms)) == (1, 1, 1, 1)
    prunable = {g for g, members in groups.items() if members.group.prunable}
    if prune_stream:
        assert prunable == groups.keys()
        assert len(stages) == len(LAYOUTS[name].stages)
        assert all(len(groups[stage].producers) >= 2 and len(groups[stage].norms) >= 2 for stage in stages)
    else:
        assert prunable == groups.keys() - stages


def test_preresnet_selects_channels_for_each_reader_of_the_stream() -> None:
    model = make("preresnet20")
    first, second = model.blocks[0], model.blocks[1]
    first.neuron1.group.set_active([0, 5])
    seen = {}
    for name, block in ("first", first), ("second", second):
        block.conv1.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0].shape[1]}))
    model(images())
    assert seen == {"first": 2, "second": 8}


# --- pruning


@each_model
@each_way
def test_scheduler_prunes_and_regrows(name: str, prune_stream: bool) -> None:
    model = make(name, prune_stream=prune_stream)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    scheduler = sca.SCAScheduler(
        model,
        optimizer,
        start=1,
        stop=4,
        interval=1,
        density=0.5,
        schedule="linear",
        min_channels=2,
        regrow_fraction=0.6,
        regrow_init="reinit",
    )
    axes = parameter_axes(model)
    regrown = 0
    for _ in range(5):
        before = {p: p.detach().clone() for p in axes}
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        for p, old in before.items():
            active = torch.ones(p.shape, dtype=torch.bool)
            for axis in axes[p]:
                listed = torch.zeros(p.shape[axis.dim], dtype=torch.bool)
                listed[axis.entries(axis.group.active)] = True
                active &= listed.view([-1 if d == axis.dim else 1 for d in range(p.dim())])
            assert torch.equal(p[~active], old[~active])
        if scheduler.wants_probe:
            scheduler.probe(lambda: loss_of(model))
        event = scheduler.step()
        if event is not None:
            regrown += event.regrown
            assert all(change.after >= 2 for change in event.groups.values())
    assert regrown > 0
    assert scheduler.density == pytest.approx(0.5, abs=0.02)
    assert len(scheduler.history) == 4


@each_model
@each_way
def test_probe_gives_dormant_channels_of_every_group_a_gradient(name: str, prune_stream: bool) -> None:
    model = make(name, prune_stream=prune_stream)
    with torch.no_grad():  # so that something fires everywhere: a batch norm whose input is constant has no gradient
        for module in model.modules():
            if hasattr(module, "running_mean"):
                module.bias.add_(0.5)
    model = cut(model)
    scheduler = sca.SCAScheduler(model, torch.optim.SGD(model.parameters(), 0.1), start=1, stop=3, interval=1)
    scheduler.probe(lambda: loss_of(model))
    gradients = scheduler.state_dict()["gradients"]
    for members in find_groups(model).values():
        if members.group.prunable:
            assert any(gradients[norm][members.group.dormant].any() for norm in members.norms), members.name


@pytest.mark.parametrize("criterion", ["rate", "weight_l1", "bn_gamma", "random"])
@pytest.mark.parametrize("allocation", ["layer", "synops"])
def test_scheduler_takes_every_criterion_and_allocation_on_selected_channels(criterion: str, allocation: str) -> None:
    model = make("preresnet20")
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    scheduler = sca.SCAScheduler(
        model,
        optimizer,
        start=1,
        stop=1,
        interval=1,
        density=0.5,
        min_channels=1,
        criterion=criterion,
        allocation=allocation,
        target="synops",
    )
    loss_of(model).backward()
    optimizer.step()
    event = scheduler.step()
    assert event.share <= 0.5 + 1e-6
    assert any(change.pruned.numel() for group, change in event.groups.items() if group.endswith("select"))


# --- compaction


@each_model
@each_way
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_compact_gives_the_same_outputs_and_gradients(name: str, prune_stream: bool, training: bool) -> None:
    model = cut(make(name, prune_stream=prune_stream)).train(training)
    small = sca.compact(model)
    torch.testing.assert_close(small(images()), model(images()), atol=1e-6, rtol=0)
    loss_of(model).backward()
    loss_of(small).backward()
    torch.testing.assert_close(small.classifier.weight.grad.norm(), model.classifier.weight.grad.norm())
    assert sum(p.numel() for p in small.parameters()) < 0.7 * sum(p.numel() for p in model.parameters())


@each_model
@each_way
def test_compact_equals_the_network_masked_behind_its_neurons(name: str, prune_stream: bool) -> None:
    """In float64: at full width convolutions add in another order, which float32 potentials at the threshold see. With
    batch norms whose bias alone would make a dormant channel fire.
    """
    model = cut(make(name, prune_stream=prune_stream))
    groups = find_groups(model)
    with torch.no_grad():
        for members in groups.values():
            for norm in members.norms.values():
                norm.bias[members.group.dormant] = 10.0
    model = model.eval().double()
    small = sca.compact(model)
    x = images().double()
    with snn.probing(members.group for members in groups.values()):
        masked = model(x)
    torch.testing.assert_close(small(x), masked, atol=1e-9, rtol=0)


@each_model
@each_way
def test_compact_network_is_rebuilt_from_its_config(name: str, prune_stream: bool) -> None:
    model = cut(make(name, prune_stream=prune_stream)).eval()
    small = sca.compact(model)
    rebuilt = models.build(**small.config)
    rebuilt.load_state_dict(small.state_dict())
    torch.testing.assert_close(rebuilt.eval()(images()), model(images()), atol=1e-6, rtol=0)


# --- cost


@each_model
@each_way
def test_report_cost_is_what_hooks_count_on_the_compact_network(name: str, prune_stream: bool) -> None:
    model = cut(make(name, prune_stream=prune_stream)).eval()
    small = sca.compact(model)
    report = sca.report_cost(model, [images()])
    macs, acs = {}, {}

    def count(layer: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        (x,) = inputs
        width = output.shape[-1 if isinstance(module, nn.Linear) else -3]
        connections = output.numel() // width * module.weight.numel() / N
        spiking = bool(((x == 0) | (x == 1)).all())
        rate = float(x.count_nonzero()) / x.numel()
        macs[layer], acs[layer] = (0.0, rate * connections) if spiking else (connections, 0.0)

    for layer, module in weight_layers(small).items():
        module.register_forward_hook(lambda m, i, o, layer=layer: count(layer, m, i, o))
    small(images())
    assert {layer.name: layer.macs for layer in report.layers} == pytest.approx(macs)
    assert {layer.name: layer.acs for layer in report.layers} == pytest.approx(acs)
    assert report.active_parameters == sum(p.numel() for p in small.parameters())
    weights = sum(m.weight.numel() for m in weight_layers(small).values())
    assert report.connectivity == weights / sum(m.weight.numel() for m in weight_layers(model).values())
    labels = [layer.label for layer in report.layers]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    "arguments",
    [
        {"tau": 4 / 3},
        {"tau": 4 / 3, "decay_input": False},
        {"tau": 2.0},
        {"neuron": "plif", "tau": 1.5},
        {"neuron": "if"},
        {"neuron": "if", "v_threshold": 0.5},
    ],
    ids=str,
)
def test_resnet_block_starts_as_its_shortcut(arguments):
    model = models.build("resnet20", width=0.5, image_size=8, **arguments)
    spikes = (torch.rand(4, 16, 8, 8, 8) < 0.15).float()
    assert (model.blocks[1](spikes) == spikes).float().mean() > 0.99


def test_resnet_starts_without_batch_norm_weights_as_well():
    model = models.build("resnet20", width=0.5, image_size=8, affine=False)
    assert model(torch.randn(2, 3, 8, 8)).shape == (4, 2, 10)
