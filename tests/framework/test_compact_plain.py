"""compact(plain=True, fold_batch_norm=True): torch's own layers, batch norms inside convolutions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import sca
from sca.models import MODELS
from sca.structure.groups import CONVOLUTIONS, find_groups
from sca.structure.plain import make_plain
from sca_kernels import nn as snn
from tests.framework.plain_nets import Decoder, Signals
from tests.framework.pruning_nets import ConvNet, batch, loss_of

SMALL = {"in_channels": 2, "image_size": 32, "width": 0.125, "time_steps": 2}
IMAGES = torch.rand(2, 2, 32, 32, generator=torch.Generator().manual_seed(0))


def pruned(name: str, **arguments) -> nn.Module:
    torch.manual_seed(0)
    model = sca.models.build(name, **{**SMALL, **arguments})
    for _ in range(3):
        model(torch.rand(4, 2, 32, 32))
    for members in find_groups(model).values():
        if members.group.prunable:
            members.group.set_active(range(0, members.group.num_channels, 2))
    for module in model.modules():
        if getattr(module, "bias", None) is not None and hasattr(module, "running_mean"):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, 0.0, 1.0)
    return model.eval()


def own_types(model: nn.Module) -> set[str]:
    return {type(m).__name__ for m in model.modules() if type(m).__module__.startswith("sca_kernels")}


@pytest.mark.parametrize("name", MODELS)
def test_plain_compacted_network_has_torchs_own_layers_and_the_same_outputs(name: str) -> None:
    model = pruned(name)
    small = sca.compact(model, plain=True)
    assert {type(m) for m in small.modules() if isinstance(m, nn.Conv2d | nn.Linear)} == {nn.Conv2d, nn.Linear}
    torch.testing.assert_close(small(IMAGES), model(IMAGES), atol=1e-5, rtol=1e-5)
    assert small.state_dict().keys() == sca.compact(model).state_dict().keys()
    rebuilt = sca.models.build(**small.config).eval()
    rebuilt.load_state_dict(small.state_dict())
    torch.testing.assert_close(rebuilt(IMAGES), small(IMAGES), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["vgg5", "vgg16", "conv5fc1", "resnet18", "resnet19", "sew_resnet18", "preresnet20"])
@pytest.mark.parametrize("neuron", ["lif", "if", "plif"])
def test_folded_network_keeps_its_outputs(name: str, neuron: str) -> None:
    model = pruned(name, neuron=neuron, **({"per_channel": True} if neuron == "plif" else {})).double()
    small = sca.compact(model, fold_batch_norm=True)
    norms = [m for m in small.modules() if hasattr(m, "running_mean")]
    if not name.startswith("preresnet"):  # whose batch norms stand in front of convolutions
        assert not norms
    assert len(norms) < len([m for m in model.modules() if hasattr(m, "running_mean")])
    images = IMAGES.double()
    torch.testing.assert_close(small(images), model(images), atol=1e-9, rtol=1e-9)
    assert small.config is None


def test_plain_and_folded_network_is_made_of_torchs_layers_and_our_neurons() -> None:
    small = sca.compact(pruned("vgg9"), plain=True, fold_batch_norm=True)
    assert own_types(small) == {"LIF", "MaxPool2d"}
    small.train()
    small(IMAGES).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_convolution_that_reads_sequences_stays_ours() -> None:
    model = ConvNet().eval()
    loss_of(model)
    small = sca.compact(model, plain=True, example_input=batch()[0])
    assert (type(small.conv1), type(small.linear)) == (snn.ChannelConv2d, nn.Linear)
    torch.testing.assert_close(small(batch()[0]), model(batch()[0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("net", [Decoder, Signals])
def test_convolutions_of_every_kind_become_torchs_and_take_batch_norms_in(net: type[nn.Module]) -> None:
    """Batch norms behind convolutions over one dimension, transposed and depthwise ones."""
    torch.manual_seed(0)
    model, x = net(), torch.rand(5, 2, 8, 8)
    for _ in range(3):
        model(x)
    sca.attach_groups(model, x)
    for members in find_groups(model).values():
        if members.group.prunable:
            members.group.set_active(range(0, members.group.num_channels, 2))
    model, x = model.eval().double(), x.double()
    small = sca.compact(model, plain=True, fold_batch_norm=True, example_input=x)
    torch.testing.assert_close(small(x), model(x), atol=1e-9, rtol=1e-9)
    assert not [m for m in small.modules() if hasattr(m, "running_mean")]
    plain = {name: type(m) for name, m in small.named_modules() if isinstance(m, CONVOLUTIONS)}
    kinds = {name: type(m) for name, m in model.named_modules() if name in plain}
    frames = {"up"} if net is Decoder else {"depthwise"}
    assert {name: kind for name, kind in plain.items() if name in frames} == {
        name: kinds[name].torchs for name in frames
    }
    assert all(plain[name] is kinds[name] for name in plain.keys() - frames)


def test_fold_of_a_grouped_transposed_convolution() -> None:
    torch.manual_seed(0)
    norm = snn.ChannelBatchNorm1d(6)
    model = nn.Sequential(nn.ConvTranspose1d(4, 6, 3, groups=2), nn.Unflatten(0, (1, -1)), norm).eval().double()
    norm.running_mean.uniform_()
    norm.running_var.uniform_(0.5, 2)
    x, expected = torch.rand(3, 4, 5).double(), copy.deepcopy(model)
    make_plain(model, x, plain=False, fold_batch_norm=True)
    assert type(model[2]) is nn.Identity
    torch.testing.assert_close(model(x), expected(x))


def test_fold_refuses_training_mode() -> None:
    model = pruned("vgg5").train()
    with pytest.raises(ValueError, match=r"fold_batch_norm: expected a model in eval mode, got .* in training mode"):
        sca.compact(model, fold_batch_norm=True)


def test_fold_refuses_where_something_else_reads_the_current() -> None:
    class Skipping(ConvNet):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            current = self.conv1(x[None])
            spikes = self.norm1(current, time_steps=3)
            return spikes.mean((0, 2, 3, 4)) + current.mean((0, 2, 3, 4))

    model = Skipping().eval()
    with pytest.raises(ValueError, match=r"fold_batch_norm: the outputs change by it: .* conv1"):
        sca.compact(model, fold_batch_norm=True, example_input=batch()[0])


class Currents(nn.Module):
    """A convolution whose current goes through what a subclass says; [N, 2, 6, 6] -> [N, 8]."""

    def __init__(self) -> None:
        super().__init__()
        group = snn.ChannelGroup(8, "currents")
        self.conv = snn.ChannelConv2d(2, 8, 3, padding=1, out_group=group)
        self.norm = snn.BatchNormLIF(8, track_running_stats=self.tracks, group=group)
        self.other = snn.BatchNormLIF(8, group=group)
        nn.init.constant_(self.norm.bias, 0.6)
        nn.init.constant_(self.other.bias, 0.3)

    tracks = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.spikes(x[None]).sum((0, 3, 4))


class ReadTwice(Currents):
    """The layer serves two batch norms, in two calls."""

    def spikes(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x)) + self.other(self.conv(x))


class ChangedInPlace(Currents):
    """What the batch norm reads is not what the layer gave."""

    def spikes(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x).mul_(2.0))


class OfTheBatch(Currents):
    """The batch norm has no statistics to fold in."""

    tracks = False

    def spikes(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


@pytest.mark.parametrize("net", [ReadTwice, ChangedInPlace, OfTheBatch])
def test_fold_leaves_batch_norms_that_are_not_the_layers_alone(net: type[nn.Module]) -> None:
    model = net().eval()
    small = sca.compact(model, fold_batch_norm=True, example_input=batch()[0])
    assert type(small.norm) is snn.BatchNormLIF
    assert torch.equal(small(batch()[0]), model(batch()[0]))


@pytest.mark.parametrize("normed", [parametrizations.weight_norm, nn.utils.spectral_norm])
def test_fold_leaves_the_batch_norm_of_a_layer_that_computes_its_weight(normed) -> None:
    class Headed(ConvNet):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.head_norm = normed(nn.Linear(4, 4)), snn.BatchNormLIF(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head_norm(self.head(super().forward(x))[None])[0]

    model = Headed().eval()
    small = sca.compact(model, fold_batch_norm=True, example_input=batch()[0])
    assert (type(small.norm1), type(small.head_norm)) == (snn.LIF, snn.BatchNormLIF)
    assert torch.equal(small(batch()[0]), model(batch()[0]))


def test_plain_needs_an_example_where_none_fits() -> None:
    class Odd(ConvNet):
        def forward(self, x: torch.Tensor, scale: float) -> torch.Tensor:
            return super().forward(x * scale)

    model = Odd().eval()
    with pytest.raises(ValueError, match=r"example_input: expected a batch that the model runs with \(.*scale"):
        sca.compact(model, plain=True)
    assert isinstance(sca.compact(model, plain=True, example_input=(batch()[0], 2.0)).linear, nn.Linear)


@pytest.mark.parametrize("argument", ["plain", "fold_batch_norm"])
def test_flags_are_checked(argument: str) -> None:
    with pytest.raises(TypeError, match=f"{argument}: expected a bool"):
        sca.compact(ConvNet(), **{argument: 1})
