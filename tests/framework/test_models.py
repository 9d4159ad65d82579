"""sca.models: shapes, direct encoding, firing at initialisation, configuration round trips."""

from __future__ import annotations

import itertools

import pytest
import torch

import sca
from sca import models
from sca.models.vgg import VGG
from sca.structure.groups import find_groups
from sca_kernels import nn as snn

TINY = {"in_channels": 2, "image_size": 8, "width": 0.125, "num_classes": 3}
VGGS = [name for name, family in models.MODELS.items() if family is VGG]


def firing_rates(model: torch.nn.Module, x: torch.Tensor) -> list[float]:
    neurons = [module for module in model.modules() if hasattr(module, "activity")]
    for neuron in neurons:
        neuron.activity = snn.Activity()
    model(x)
    return [float(n.activity.spike_count.sum() / n.activity.positions.sum()) for n in neurons]


@pytest.mark.parametrize(
    ("name", "layers"),
    [("vgg5", 5), ("vgg9", 9), ("vgg11", 11), ("vgg16", 16), ("vgg19", 19), ("conv5fc1", 6), ("vggsnn", 9)],
)
def test_build_vgg_counts_its_layers_and_gives_logits_per_step(name, layers):
    model = models.build(name, time_steps=3, **TINY)
    weighted = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(weighted) == layers
    logits = model(torch.randn(4, 2, 8, 8))
    assert logits.shape == (3, 4, 3)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["vgg16", "conv5fc1", "vggsnn"])
@pytest.mark.parametrize("size", [4, 7, 8, 32, (8, 12)])
def test_build_vgg_fits_any_image_size(size, name):
    height, width = (size, size) if isinstance(size, int) else size
    model = models.build(name, num_classes=5, image_size=size, width=0.05)
    assert model(torch.randn(2, 3, height, width)).shape == (4, 2, 5)


def test_build_vgg16_is_that_of_the_paper():
    model = models.build("vgg16")
    convolutions = [m.out_channels for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert convolutions == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert all(m.bias is None for m in model.modules() if isinstance(m, torch.nn.Conv2d))
    assert sum(isinstance(m, torch.nn.MaxPool2d) for m in model.modules()) == 5
    linears = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert linears == [(512, 512), (512, 512), (512, 10)]


@pytest.mark.parametrize(
    ("name", "layers", "features"),
    [
        ("conv5fc1", [64, "AP2", 128, "AP2", 128, "AP2", 256, "AP2", 256, "AP2"], 256),
        ("vggsnn", [64, 128, "AP2", 256, 256, "AP2", 512, 512, "AP2", 512, 512, "AP2"], 512 * 3 * 3),
    ],
)
def test_build_gives_the_networks_for_event_cameras_of_the_papers(name, layers, features):
    model = models.build(name, in_channels=2, image_size=48)
    built = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.AvgPool2d)]
    assert [m.out_channels if isinstance(m, torch.nn.Conv2d) else f"AP{m.kernel_size}" for m in built] == layers
    assert len(model.hidden) == 0
    assert model.classifier.weight.shape == (10, features)


@pytest.mark.parametrize("neuron", ["if", "lif", "plif"])
def test_build_vgg16_fires_in_every_layer_at_initialisation(neuron):
    model = models.build("vgg16", image_size=16, width=0.25, neuron=neuron)
    rates = firing_rates(model, torch.randn(4, 3, 16, 16))
    assert len(rates) == 15
    assert all(0.01 < rate < 0.5 for rate in rates), rates


def test_vgg_presents_a_still_image_as_a_constant_sequence():
    model = models.build("vgg5", time_steps=4, **TINY).eval()
    x = torch.randn(3, 2, 8, 8)
    assert torch.allclose(model(x), model(x.expand(4, -1, -1, -1, -1)), atol=1e-5)


@pytest.mark.parametrize("name", models.MODELS)
def test_sequence_goes_in_step_by_step_and_leaves_nothing_behind(name):
    model = models.build(name, **TINY)
    model(torch.rand(8, 2, 8, 8))
    model.eval()
    x = torch.rand(5, 3, 2, 8, 8)
    seen = []
    first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    logits = model(x)
    assert torch.equal(model(x), logits)
    (frames, currents), _ = seen
    assert torch.equal(frames, x.flatten(0, 1))
    assert len(currents.unflatten(0, (5, 3)).unique(dim=0)) == 5
    torch.testing.assert_close(model(x[:2]), logits[:2])


def test_vgg_computes_the_first_convolution_of_a_still_image_once():
    model = models.build("vgg5", time_steps=4, **TINY)
    rows = []
    model.features[0].conv.register_forward_hook(lambda _, inputs, output: rows.append(len(output)))
    x = torch.randn(3, 2, 8, 8)
    model(x)
    model(x.expand(4, -1, -1, -1, -1))
    assert rows == [3, 12]


def test_vgg_keeps_channels_last_throughout():
    model = models.build("vgg9", **TINY)
    layouts = []
    for block in model.features[1:]:
        block.conv.register_forward_pre_hook(
            lambda _, inputs: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
        )
    model(torch.randn(3, 2, 8, 8).contiguous(memory_format=torch.channels_last))
    assert len(layouts) == 6
    assert all(layouts)


@pytest.mark.parametrize("pool", ["max", "avg"])
def test_vgg_tells_convolutions_whether_they_read_spikes(pool):
    model = models.build("vgg9", pool=pool, **TINY)
    spikes = []
    for block in model.features:
        block.conv.register_forward_pre_hook(lambda _, inputs: spikes.append(inputs[0].unique().tolist() == [0, 1]))
    model(torch.randn(3, 2, 8, 8))
    assert spikes == [False, True, pool == "max", True, pool == "max", True, True]
    assert spikes == [block.conv.spike_input for block in model.features]


def test_vgg_groups_tie_producer_neuron_and_consumer():
    model = models.build("vgg5", **TINY)
    blocks = list(model.features)
    for block, following in itertools.pairwise(blocks):
        assert block.conv.out_group is block.neuron.group is following.conv.in_group
    assert blocks[-1].neuron.group is model.hidden[0].linear.in_group
    assert model.hidden[0].neuron.group is model.classifier.in_group
    assert [block.neuron.group.name for block in blocks] == ["conv1", "conv2", "conv3"]


def test_vgg_runs_at_the_active_width():
    model = models.build("vgg9", image_size=16, in_channels=1, width=0.25).eval()
    full = model(torch.randn(2, 1, 16, 16))
    for block in model.features:
        block.neuron.group.set_active(range(0, block.neuron.group.num_channels, 2))
    widths = []
    model.features[3].conv.register_forward_hook(
        lambda _, inputs, output: widths.append((inputs[0].shape[1], output.shape[1]))
    )
    assert model(torch.randn(2, 1, 16, 16)).shape == full.shape
    assert widths == [(16, 16)]


@pytest.mark.parametrize(
    "arguments",
    [{}, {"neuron": "plif", "v_reset": None}, {"tau": 4 / 3, "surrogate": "sigmoid"}, {"pool": "avg"}],
)
def test_build_from_config_makes_the_same_architecture(arguments):
    model = models.build("vgg5", **TINY, **arguments)
    again = models.build(**model.config)
    assert again.config == model.config
    again.load_state_dict(model.state_dict())
    x = torch.randn(2, 2, 8, 8)
    assert torch.equal(model.eval()(x), again.eval()(x))


@pytest.mark.parametrize("name", VGGS)
def test_build_from_a_config_that_names_no_pool_takes_the_originals(name):
    config = models.build(name, **TINY).config
    assert config["pool"] == ("avg" if name in ("conv5fc1", "vggsnn") else "max")
    assert models.build(**{key: value for key, value in config.items() if key != "pool"}).config == config


@pytest.mark.parametrize("pool", ["max", "avg"])
@pytest.mark.parametrize("name", VGGS)
def test_vgg_compact_equals_the_network_masked_behind_its_neurons(name, pool):
    """In float64: at full width convolutions add in another order, which float32 potentials at the threshold see. With
    batch norms whose bias alone would make a dormant channel fire."""
    model = models.build(name, pool=pool, **TINY)
    x = torch.randn(4, 2, 8, 8)
    model(x)
    groups = find_groups(model)
    with torch.no_grad():
        for members in groups.values():
            members.group.set_active(range(0, members.group.num_channels, 2))
            for norm in members.norms.values():
                norm.bias[members.group.dormant] = 10.0
    model = model.eval().double()
    with snn.probing(members.group for members in groups.values()):
        masked = model(x.double())
    torch.testing.assert_close(sca.compact(model)(x.double()), masked, atol=1e-9, rtol=0)


def test_build_with_widths_makes_a_physically_smaller_network():
    model = models.build("vgg5", **TINY, widths={"conv2": 5, "fc1": 7})
    assert model.features[1].conv.out_channels == model.features[2].conv.in_channels == 5
    assert model.hidden[0].linear.out_features == model.classifier.in_features == 7
    assert model(torch.randn(2, 2, 8, 8)).shape == (4, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "vgg7"}, f"model: expected one of {', '.join(models.MODELS)}, got 'vgg7'"),
        ({"neuron": "relu"}, "neuron: expected one of if, lif, plif, got 'relu'"),
        ({"time_steps": 0}, "time_steps: expected at least 1, got 0"),
        ({"num_classes": 0}, "num_classes"),
        ({"image_size": 0}, "image_size"),
        ({"width": 0.0}, "width"),
        ({"tau": 1.0}, "tau"),
        ({"pool": "min"}, "pool: expected one of max, avg, got 'min'"),
        ({"widths": {"conv9": 4}}, "widths: vgg5 has no group named conv9"),
    ],
)
def test_build_names_the_argument_that_is_off(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.build(**{"name": "vgg5", **TINY, **arguments})


def test_vgg_forward_refuses_another_rank():
    with pytest.raises(ValueError, match=r"x: expected \[N, C, H, W\]"):
        models.build("vgg5", **TINY)(torch.randn(2, 8, 8))


def test_tools_that_see_weights_as_vectors_take_the_contiguous_layout():
    """As :func:`sca.models.build` says."""
    model = models.build("vgg5", num_classes=4, in_channels=1, time_steps=2, image_size=8, width=0.125)
    x = torch.rand(2, 1, 8, 8)
    with pytest.raises(RuntimeError, match="view"):
        torch.nn.utils.parameters_to_vector(model.parameters())
    expected = model.eval()(x)
    model.to(memory_format=torch.contiguous_format)
    vector = torch.nn.utils.parameters_to_vector(model.parameters())
    torch.nn.utils.vector_to_parameters(vector.clone(), model.parameters())
    torch.testing.assert_close(model(x), expected)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert not torch.equal(torch.nn.utils.parameters_to_vector(model.parameters()), vector)
