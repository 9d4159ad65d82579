"""attach_groups(): what cannot be pruned, and why; what it says of it, by name and by line."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sca
from sca.structure.groups import carried, find_groups
from sca_kernels import functional as snn_functional
from sca_kernels import nn as snn
from sca_kernels.nn.group import ROLES
from tests.framework.plain_nets import (
    Branches,
    Identity,
    Net,
    T,
    Vgg,
    batch,
    conv,
    firing,
    masked,
    wiring,
)
from tests.framework.pruning_nets import SETTINGS


class OwnForward(snn.ChannelConv2d):
    """What it does with channels, its base can't say."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flip(-1))


def written(x: Tensor) -> Tensor:
    out = torch.zeros(x.shape)
    out[0] = x[0]
    return out


# what stands between the two convolutions, and what is then said of the first
REASONS = {
    "input added": (
        lambda net, s, x: s + x.repeat(1, 3, 1, 1),
        r"an addition \(add at .*:\d+\) ties it to the network's input",
    ),
    "parameter": (
        lambda net, s, x: s * net.scale,
        r"a multiplication \(mul at .*\) ties it to parameter 'scale'",
    ),
    "constant": (lambda net, s, x: s + torch.ones(6, 1, 1), "ties it to a tensor of fixed size"),
    "number added": (lambda net, s, x: s + 1.0, r"conv2 \(ChannelConv2d\) reads it, with no neuron before to silence"),
    "added in place": (lambda net, s, x: s.clone().add_(1.0), "with no neuron before to silence a dormant channel"),
    "unknown": (
        lambda net, s, x: torch.softmax(s, 2),
        r"softmax at test_pruning_unprunable.py:\d+ reads it: tracing doesn't know",
    ),
    "reordered": (
        lambda net, s, x: s[:, :, [1, 0, 2, 3, 4, 5]],
        r"getitem at .* mixes its channels with each other, leaves some out or reorders them",
    ),
    "flipped": (lambda net, s, x: s + s.flip(2), r"flip at .* mixes its channels"),
    "shuffled": (lambda net, s, x: s.unflatten(2, (2, 3)).transpose(2, 3).flatten(2, 3), r"unflatten at .* mixes"),
    "padded": (lambda net, s, x: F.pad(s, (0, 0, 0, 0, 1, 1))[:, :, 1:-1], "pad at .* works across its channels"),
    "literal view": (
        lambda net, s, x: s.view(T, -1, 6, 8, 8),
        r"fails without some of these channels: .*test_pruning_unprunable.py",
    ),
    "grouped": (lambda net, s, x: net.grouped(s), r"grouped \(ChannelConv2d\) is a grouped convolution \(groups=2\)"),
    "torch batch norm": (
        lambda net, s, x: net.bn(s.flatten(0, 1)).unflatten(0, (T, -1)),
        r"bn \(torch.nn.BatchNorm2d\) reads it: replace it by .*ChannelBatchNorm2d",
    ),
    "torch convolution": (
        lambda net, s, x: net.plain(s.flatten(0, 1)).unflatten(0, (T, -1)),
        r"plain \(torch.nn.Conv2d\) reads it: replace it by .*nn.ChannelConv2d",
    ),
    "torch convolution over one dimension": (
        lambda net, s, x: net.plain1d(s.flatten(3).flatten(0, 1)).view(T, -1, 6, 8, 8),
        r"plain1d \(torch.nn.Conv1d\) reads it: replace it by .*nn.ChannelConv1d",
    ),
    "torch transposed convolution": (
        lambda net, s, x: net.widen(s.flatten(0, 1)).unflatten(0, (T, -1)),
        r"widen \(torch.nn.ConvTranspose2d\) reads it: replace it by .*nn.ChannelConvTranspose2d",
    ),
    "functional transposed convolution": (
        lambda net, s, x: F.conv_transpose2d(s[0], torch.ones(6, 6, 1, 1))[None],
        r"conv_transpose2d at .*nn.ChannelConvTranspose2d",
    ),
    "grouped transposed": (
        lambda net, s, x: net.grouped_up(s),
        r"grouped_up \(ChannelConvTranspose2d\) is a grouped convolution \(groups=2\)",
    ),
    "border of ones": (
        lambda net, s, x: F.pad(s, (1, 1, 1, 1), value=1.0),
        r"conv2 \(ChannelConv2d\) reads it, with no neuron before to silence",
    ),
    "functional convolution": (
        lambda net, s, x: F.conv2d(s[0], torch.ones(6, 6, 1, 1))[None],
        r"conv2d at .*nn.ChannelConv2d",
    ),
    "functional neuron": (lambda net, s, x: snn_functional.lif(s).spikes, "lif at .*: a function can't carry a group"),
    "forward of its own": (lambda net, s, x: net.own(s), r"channel_conv2d at .*nn.ChannelConv2d"),
    "written": (lambda net, s, x: written(s), "setitem at .*: it writes into another tensor; join tensors by"),
    "added to a constant": (lambda net, s, x: torch.zeros(s.shape).add_(s), "add at .*: it writes into another tensor"),
    "compared": (lambda net, s, x: (s > x.repeat(1, 3, 1, 1)) * s, "gt at .* reads it: tracing doesn't know"),
}


def over_sequences(x: Tensor, pool: nn.Module) -> Tensor:
    """Pool each row of an image, a sequence of its columns."""
    rows = x.permute(0, 1, 3, 2, 4).flatten(0, 2)
    return pool(rows).unflatten(0, (*x.shape[:2], x.shape[3])).permute(0, 1, 3, 2, 4)


POOLS = {
    "avg_pool1d": lambda net, s, x: over_sequences(s, lambda rows: F.avg_pool1d(rows, 2)),
    "MaxPool1d": lambda net, s, x: over_sequences(s, nn.MaxPool1d(2)),
    "borders": lambda net, s, x: over_sequences(s, lambda rows: nn.ZeroPad1d((2, 0))(F.pad(rows, (1, 0)))[..., 2:-1]),
    "reflection": lambda net, s, x: nn.ReflectionPad2d(1)(s.flatten(0, 1)).unflatten(0, (T, -1)),
    "interpolation": lambda net, s, x: over_sequences(s, lambda rows: F.interpolate(rows, 16)),
    "AdaptiveAvgPool3d": lambda net, s, x: (
        nn.AdaptiveAvgPool3d((T, 4, 4))(s.transpose(1, 2).transpose(0, 2)).transpose(0, 2).transpose(1, 2)
    ),
}


@pytest.mark.parametrize("case", POOLS)
def test_attach_groups_follows_channels_through_pools_over_one_and_three_dimensions(case: str) -> None:
    model = Net(POOLS[case]).eval()
    sca.attach_groups(model, batch()[0])
    assert wiring(model)["conv1"] == ("conv1", "neuron1", "conv2")
    model.conv1.out_group.set_active([0, 3])
    torch.testing.assert_close(model(batch()[0]), masked(model)(batch()[0]), rtol=1e-5, atol=1e-6)


class Vote(nn.Module):
    """Each class has three neurons, side by side, as SpikingJelly's VotingLayer takes them."""

    def __init__(self, pool: nn.Module | None) -> None:
        super().__init__()
        self.conv, self.neuron = conv(2, 6), firing(6)
        self.hidden, self.hidden_neuron = snn.ChannelLinear(6, 10), firing(10)
        self.voters, self.voters_neuron = snn.ChannelLinear(10, 12), firing(12)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        s = self.neuron(self.conv(x[None]), time_steps=T).mean((3, 4))
        s = self.voters_neuron(self.voters(self.hidden_neuron(self.hidden(s)))).flatten(0, 1)
        votes = F.avg_pool1d(s.unsqueeze(1), 3, 3).squeeze(1) if self.pool is None else self.pool(s)
        return votes.unflatten(0, (T, -1)).mean(0)


@pytest.mark.parametrize("pool", [None, nn.AvgPool1d(3), nn.AdaptiveAvgPool1d(4), nn.MaxPool1d(3)], ids=str)
def test_attach_groups_keeps_voters_whole_and_prunes_what_they_read(pool: nn.Module | None) -> None:
    """Without one voter, the pool would take the next class's first in its place."""
    model = Vote(pool).eval()
    report = sca.attach_groups(model, batch()[0])
    assert re.search(r"works across its channels: without one of them it would mix", report.unprunable["voters"])
    assert wiring(model) == {
        "conv": ("conv", "neuron", "hidden"),
        "hidden": ("hidden", "hidden_neuron", "voters"),
    }
    for members in find_groups(model).values():
        if members.group.prunable:
            members.group.set_active([0, 3])
    for outputs in model(batch()[0]), sca.compact(model)(batch()[0]):
        torch.testing.assert_close(outputs, masked(model)(batch()[0]), rtol=1e-5, atol=1e-6)


class Foreign(nn.Conv2d):
    """Another library's: a subclass with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x.flatten(0, 1), self.weight, padding=1).unflatten(0, x.shape[:2])


def test_attach_groups_names_the_modules_in_which_foreign_functions_are_called() -> None:
    layers = nn.Sequential(Foreign(6, 6, 3, padding=1), nn.Sequential(Foreign(6, 6, 3, padding=1)))
    report = sca.attach_groups(Net(lambda net, s, x: net.layers(s), layers=layers), batch()[0])
    names = [re.sub(r":\d+", "", name) for name in report.unprunable if "conv2d" in name]
    assert names == [f"conv2d at test_pruning_unprunable.py, in layers.{name}" for name in ("0", "1.0")]
    vote = Net(lambda net, s, x: F.avg_pool1d(s.movedim(2, -1).flatten(0, 2), 2)[:6].mean() * s)
    assert "avg_pool1d at test_pruning_unprunable.py" in (reason := sca.attach_groups(vote).unprunable["conv1"])
    assert "works across its channels" in reason


@pytest.mark.parametrize("case", REASONS)
def test_attach_groups_says_why_a_group_cannot_be_pruned(case: str) -> None:
    middle, reason = REASONS[case]
    model = Net(middle, bn=nn.BatchNorm2d(6), plain=nn.Conv2d(6, 6, 1), grouped=conv(6, 6, groups=2))
    model.plain1d, model.widen = nn.Conv1d(6, 6, 1), nn.ConvTranspose2d(6, 6, 1)
    model.grouped_up = snn.ChannelConvTranspose2d(6, 6, 1, groups=2)
    model.own = OwnForward(6, 6, 1)
    model.scale = nn.Parameter(torch.ones(6, 1, 1))
    report = sca.attach_groups(model, batch()[0])
    assert re.search(reason, report.unprunable["conv1"]), report.unprunable["conv1"]
    assert "conv1" not in wiring(model)
    model.eval()
    for members in find_groups(model).values():
        if members.group.prunable:
            members.group.set_active([0, 3])
    assert model(batch()[0]).shape == (5, 4)
    torch.testing.assert_close(sca.compact(model)(batch()[0]), masked(model)(batch()[0]), rtol=1e-5, atol=1e-6)


def test_attach_groups_gives_what_stands_beside_channels_a_fixed_place() -> None:
    model = Branches()
    report = sca.attach_groups(model, batch()[0])
    assert report.unprunable["the network's input"] == "it is the network's input"
    assert [part.name for part in model.joint.in_group.parts] == ["left", "the network's input", "right"]
    assert [part.prunable for part in model.joint.in_group.parts] == [True, False, True]


def test_attach_groups_leaves_the_residual_stream_alone_unless_asked() -> None:
    model = Identity()
    report = sca.attach_groups(model, batch()[0])
    assert list(wiring(model)) == ["conv1"]
    assert "additions tie it (add at plain_nets.py" in report.unprunable["stem"]
    assert "prune_stream=True" in report.unprunable["stem"]
    assert "stem   8         stem + 1 more  neuron + 1 more  conv1 + 1 more  no" in str(report)


def test_attach_groups_lists_what_is_not_called_and_neurons_without_groups() -> None:
    shared = snn.LIF()
    model = Net(lambda net, s, x: net.shared(net.extra(net.shared(s))), channels=7, extra=conv(6, 7), shared=shared)
    model.unused = conv(2, 2)
    report = sca.attach_groups(model, batch()[0])
    assert report.unprunable["unused"] == "it is not called in the pass that was traced"
    assert report.unprunable["conv1"] == "shared works on it and, in another call, other channels"
    assert report.unprunable["extra"] == "shared works on it and, in another call, other channels"
    assert list(wiring(model)) == ["conv2"]
    assert shared.group is None


def test_attach_groups_ties_layers_that_share_a_parameter() -> None:
    model = Net(lambda net, s, x: net.neuron3(net.conv3(s)), conv3=conv(6, 6), neuron3=firing(6))
    model.conv2, model.neuron2 = conv(6, 6), firing(6)
    model.head = snn.ChannelLinear(6, 4)
    model.conv3.weight = model.conv2.weight
    sca.attach_groups(model, batch()[0])
    assert wiring(model) == {"conv1": ("conv1 conv2 conv3", "neuron1 neuron2 neuron3", "conv2 head conv3")}
    model.eval().conv1.out_group.set_active([0, 4])
    small = sca.compact(model)
    assert small.conv3.weight is small.conv2.weight
    torch.testing.assert_close(small(batch()[0]), masked(model)(batch()[0]), rtol=1e-5, atol=1e-6)


def test_attach_groups_ties_a_transposed_convolution_that_shares_the_weight_of_a_convolution() -> None:
    """As autoencoders do: rows of the one weight are the outputs of one layer and the inputs of the other."""
    model = Net(lambda net, s, x: net.up_neuron(net.up(net.code(net.down(s)))), down=conv(6, 7), code=firing(7))
    model.up, model.up_neuron = snn.ChannelConvTranspose2d(7, 6, 3, padding=1, bias=False), firing(6)
    model.up.weight = model.down.weight
    sca.attach_groups(model, batch()[0])
    assert wiring(model) == {
        "conv1": ("conv1 up", "neuron1 up_neuron", "conv2 down"),
        "down": ("down", "code", "up"),
        "conv2": ("conv2", "neuron2", "head"),
    }
    model.eval().conv1.out_group.set_active([0, 4])
    model.down.out_group.set_active([1, 2, 6])
    small = sca.compact(model)
    assert small.up.weight is small.down.weight
    torch.testing.assert_close(small(batch()[0]), masked(model)(batch()[0]), rtol=1e-5, atol=1e-6)


def test_attach_groups_traces_code_that_checks_what_it_gets() -> None:
    def middle(net, s, x):
        if not isinstance(s, Tensor) or not s.is_floating_point() or s.layout is not torch.strided:
            raise TypeError(f"expected a tensor, got {type(s).__name__}")
        net.buffer = s.sum((0, 1, 3, 4))
        return torch.relu(s * 2.0) - 0 * s

    model = Net(middle)
    model.register_buffer("buffer", torch.zeros(6))
    sca.attach_groups(model, batch()[0])
    assert wiring(model)["conv1"] == ("conv1", "neuron1", "conv2")
    assert torch.equal(model.buffer, torch.zeros(6))


def test_attach_groups_refuses_values_in_control_flow_by_line() -> None:
    def middle(net, s, x):
        return s if s.sum() > 3 else -s

    with pytest.raises(ValueError, match=r"tracing stopped at .*unprunable.py:\d+ \(return s if s.sum\(\)"):
        sca.attach_groups(Net(middle), batch()[0])


def test_attach_groups_refuses_a_model_with_nothing_to_prune_and_leaves_it_as_it_was() -> None:
    foreign = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 36, 4))
    with pytest.raises(ValueError, match=r"no channels that can be pruned\n.*0 \(torch.nn.Conv2d\): replace it by"):
        sca.attach_groups(foreign, batch()[0])
    bare = nn.Sequential(conv(2, 6), conv(6, 8))
    with pytest.raises(ValueError, match=r"0: 1 \(ChannelConv2d\) reads it, with no neuron before"):
        sca.SCAScheduler(bare, torch.optim.SGD(bare.parameters(), 0.1), **SETTINGS)
    assert all(carried(module, role) is None for module in bare.modules() for role in ROLES)


def test_attach_groups_refuses_a_model_that_carries_groups_and_inputs_that_do_not_fit() -> None:
    model = Vgg()
    sca.attach_groups(model)
    with pytest.raises(ValueError, match="carry some already"):
        sca.attach_groups(model)
    with pytest.raises(ValueError, match=r"tracing stopped at .*plain_nets.py:\d+"):
        sca.attach_groups(Vgg(), torch.zeros(2, 2, 16, 16))
    with pytest.raises(ValueError, match="example_input: expected one batch, for none of the usual sizes fits"):
        sca.attach_groups(nn.Sequential(conv(2, 4), firing(4), nn.Flatten(2), snn.ChannelLinear(4 * 5 * 7, 4)))
