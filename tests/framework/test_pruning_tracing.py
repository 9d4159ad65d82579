"""attach_groups(): groups of any network by tracing, exact for the scheduler, compact() and report_cost()."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import sca
from sca.structure.groups import channel_axes, find_groups
from sca_kernels import nn as snn
from tests.framework.plain_nets import (
    Branches,
    Decoder,
    Dense,
    Depthwise,
    Functional,
    Gated,
    Identity,
    Net,
    Projection,
    Shared,
    Signals,
    T,
    Vgg,
    batch,
    conv,
    firing,
    loss_of,
    masked,
    sequential,
    stripped,
    train_step,
    wiring,
)
from tests.framework.pruning_nets import SETTINGS
from tests.framework.watched import assert_equal_state

# network -> group -> what makes, carries and reads it
EXPECTED = {
    Vgg: {
        "convs.0": ("convs.0", "neurons.0", "convs.1"),
        "convs.1": ("convs.1", "neurons.1", "hidden.0"),
        "hidden.0": ("hidden.0", "hidden_neuron", "head"),
    },
    Identity: {
        "stem": ("stem conv2", "neuron neuron2", "conv1 head"),
        "conv1": ("conv1", "neuron1", "conv2"),
    },
    Projection: {
        "stem": ("stem", "neuron", "conv1 shortcut.0"),
        "conv1": ("conv1", "neuron1", "conv2"),
        "conv2": ("conv2 shortcut.0", "norm2 shortcut.1 neuron2", "head"),
    },
    Dense: {
        "stem": ("stem", "neuron norm2", "conv1 conv2 head"),
        "conv1": ("conv1", "neuron1 norm2", "conv2 head"),
        "conv2": ("conv2", "neuron2", "head"),
    },
    Shared: {"stem": ("stem conv", "neuron repeated", "conv head")},
    Depthwise: {
        "expand": ("expand depthwise", "norm neuron1", "depthwise project"),
        "project": ("project second", "neuron2 neuron3", "second head"),
    },
    Functional: {"conv1": ("conv1", "neuron1", "conv2"), "conv2": ("conv2", "neuron2", "head")},
    Gated: {"conv": ("conv excite", "neuron", "squeeze head"), "squeeze": ("squeeze", "inner", "excite")},
    Branches: {
        "left": ("left", "neuron_left", "joint"),
        "right": ("right", "neuron_right", "joint"),
        "joint": ("joint", "neuron", "head"),
    },
    Signals: {
        "conv1": ("conv1 depthwise", "norm1 neuron1 neuron2", "depthwise conv2"),
        "conv2": ("conv2", "neuron3", "widen"),
        "widen": ("widen", "neuron4", "hidden"),
        "hidden": ("hidden", "norm5 neuron5", "head"),
    },
    Decoder: {
        "stem": ("stem", "neuron", "down joint"),
        "down": ("down", "neuron1", "up"),
        "up": ("up", "neuron2", "joint"),
        "joint": ("joint enlarge", "neuron3 neuron4", "enlarge head"),
    },
}


def pruned(net: type[nn.Module], **settings) -> tuple[nn.Module, torch.optim.Optimizer, int]:
    """Trained for a few steps in which the scheduler cuts and regrows; how many channels came back."""
    model = net()
    sca.attach_groups(model, batch()[0], prune_stream=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    scheduler = sca.SCAScheduler(model, optimizer, **{**SETTINGS, **settings})
    regrown = 0
    for _ in range(5):
        train_step(model, optimizer)
        if scheduler.wants_probe:
            scheduler.probe(lambda: loss_of(model))
        event = scheduler.step()
        regrown += 0 if event is None else event.regrown
    assert scheduler.history[-1]["share"] < 0.6
    return model, optimizer, regrown


def partition(model: nn.Module) -> set[frozenset[tuple[str, str]]]:
    """Each group as the set of the places where it is carried."""
    return {
        frozenset(
            (role, name)
            for role, modules in (("out", m.producers), ("group", m.carriers), ("in", m.consumers))
            for name in modules
        )
        for m in find_groups(model).values()
    }


@pytest.mark.parametrize("net", EXPECTED, ids=lambda net: net.__name__)
def test_attach_groups_finds_what_lives_and_dies_together(net: type[nn.Module]) -> None:
    model = net()
    report = sca.attach_groups(model, batch()[0], prune_stream=True)
    assert wiring(model) == EXPECTED[net]
    assert {row.name for row in report.groups if row.prunable} == set(EXPECTED[net])
    assert report.unprunable["head"] == "it is the network's output"


@pytest.mark.parametrize("name", ["vgg5", "vgg9", "conv5fc1", "vggsnn", "resnet20", "preresnet20", "sew_resnet18"])
def test_attach_groups_finds_the_groups_that_our_models_are_built_with(name: str) -> None:
    built = sca.models.build(name, width=0.25, image_size=16)
    model = stripped(built)
    sca.attach_groups(model, torch.zeros(2, 3, 16, 16))
    assert partition(model) == partition(built)
    flags = [sorted(m.group.prunable for m in find_groups(net).values()) for net in (model, built)]
    assert flags[0] == flags[1]
    blocks = [[m.features_per_channel for m in net.modules() if isinstance(m, nn.Linear)] for net in (model, built)]
    assert blocks[0] == blocks[1]


@pytest.mark.parametrize("net", EXPECTED, ids=lambda net: net.__name__)
def test_scheduler_prunes_and_regrows_and_compact_equals_masked(net: type[nn.Module]) -> None:
    model, _, regrown = pruned(net, regrow_init="reinit")
    assert regrown > 0
    with torch.no_grad():  # dormant biases that alone would fire
        for members in find_groups(model).values():
            for norm in members.norms.values():
                norm.bias[norm.group.dormant] = 10.0
    model.eval()
    x = batch()[0]
    expected = masked(model)(x)
    small = sca.compact(model)
    with snn.probing(members.group for members in find_groups(model).values()):
        probed = model(x)
    for outputs in small(x), model(x), probed:
        assert ((outputs - expected).norm() <= 1e-6 * expected.norm()).item()
    cost, dense = sca.report_cost(model, [x]), sca.report_cost(small, [x])
    assert cost.active_parameters == dense.parameters
    assert cost.synops == pytest.approx(dense.synops)


@pytest.mark.parametrize("allocation", ["layer", "synops"])
@pytest.mark.parametrize(("net", "criterion"), [(Dense, "weight_l1"), (Branches, "bn_gamma"), (Decoder, "weight_l1")])
def test_scheduler_settings_understand_concatenations(allocation: str, net: type[nn.Module], criterion: str) -> None:
    model, _, _ = pruned(net, allocation=allocation, criterion=criterion, target="parameters", regrow_init="zero")
    share = sum(p.numel() for p in sca.compact(model).parameters()) / sum(p.numel() for p in model.parameters())
    assert 0.3 < share < 0.6


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("net", [Decoder, Dense, Depthwise, Gated, Shared, Signals], ids=lambda net: net.__name__)
def test_dormant_entries_stay_bit_identical(net: type[nn.Module], kind: type[torch.optim.Optimizer]) -> None:
    model = net()
    sca.attach_groups(model, batch()[0], prune_stream=True)
    momentum = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(model.parameters(), 0.05, weight_decay=0.1, **momentum)
    sca.SCAScheduler(model, optimizer, **{**SETTINGS, "start": 100, "stop": 100})
    train_step(model, optimizer)
    for members in find_groups(model).values():
        members.group.set_active(range(0, members.group.num_channels, 2))
    live = {name: torch.zeros(value.shape, dtype=torch.bool) for name, value in model.state_dict().items()}
    for place, module in model.named_modules():
        for name, axes in channel_axes(module).items():
            active = torch.ones_like(live[f"{place}.{name}"])
            for axis in axes:
                off = torch.ones(active.shape[axis.dim], dtype=torch.bool)
                off[axis.entries(axis.group.active)] = False
                active.index_fill_(axis.dim, off.nonzero().flatten(), False)
            live[f"{place}.{name}"] = active
    before = copy.deepcopy(model.state_dict())
    states = {p: copy.deepcopy(state) for p, state in optimizer.state.items()}
    for _ in range(5):
        train_step(model, optimizer)
    parameters = dict(model.named_parameters())
    checked = 0
    for name, value in model.state_dict().items():
        dormant = ~live[name]
        if value.dim() and live[name].any():
            assert torch.equal(value[dormant], before[name][dormant])
            assert not torch.equal(value, before[name]), name
            checked += int(dormant.sum())
            for key, state in states.get(parameters.get(name), {}).items():
                if isinstance(state, Tensor) and state.shape == dormant.shape:
                    assert torch.equal(optimizer.state[parameters[name]][key][dormant], state[dormant])
    assert checked > 100


def test_a_concatenation_is_read_by_the_columns_of_its_parts() -> None:
    model = Dense()
    sca.attach_groups(model, batch()[0])
    groups = {name: members.group for name, members in find_groups(model).items()}
    groups["stem"].set_active([1, 4])
    groups["conv1"].set_active([0, 5])
    assert model.conv2.in_group.active.tolist() == [1, 4, 5, 10]
    assert model.norm2.group is not model.norm2.group.parts[0]
    small = sca.compact(model)
    torch.testing.assert_close(small.conv2.weight, model.conv2.weight[:, [1, 4, 5, 10]])
    torch.testing.assert_close(small.norm2.running_var, model.norm2.running_var[[1, 4, 5, 10]])
    assert small.head.weight.shape == (4, 4 * (2 + 2 + 4))
    assert small.widths == {"stem": 2, "conv1": 2, "conv2": 4}
    with pytest.raises(TypeError, match="set the active channels of its parts"):
        model.conv2.in_group.set_active([0])


def test_scheduler_attaches_groups_by_itself_and_needs_no_example() -> None:
    model = Vgg()
    scheduler = sca.SCAScheduler(model, torch.optim.SGD(model.parameters(), 0.1), **SETTINGS)
    assert wiring(model) == EXPECTED[Vgg]
    assert scheduler.attached.unprunable == {"head": "it is the network's output"}
    dense = Dense()  # its literal reshape takes larger images, too, and mixes their channels
    sca.SCAScheduler(dense, torch.optim.SGD(dense.parameters(), 0.1), **SETTINGS)
    assert wiring(dense) == EXPECTED[Dense]
    for net in (Signals, Decoder):
        model = net()
        sca.attach_groups(model)
        assert wiring(model) == EXPECTED[net]
    layers = sequential()
    sca.SCAScheduler(layers, torch.optim.SGD(layers.parameters(), 0.1), **SETTINGS)
    assert list(wiring(layers)) == ["0", "2"]
    assert layers[5].features_per_channel == 16


def test_attach_groups_reads_no_time_axis_as_channels() -> None:
    """Six steps, six samples, six channels, sides of six."""
    model = nn.Sequential(conv(6, 6), firing(6), conv(6, 6), firing(6), nn.Flatten(2), snn.ChannelLinear(6 * 36, 4))
    sca.attach_groups(model, torch.zeros(6, 6, 6, 6, 6))
    assert wiring(model) == {"0": ("0", "1", "2"), "2": ("2", "3", "5")}
    with pytest.raises(ValueError, match=r"1 \(LIF\): expected its channels in dimension 2 .* in dimension 1"):
        sca.attach_groups(nn.Sequential(conv(6, 6), snn.LIF()), torch.zeros(6, 6, 6, 6))


def test_attach_groups_leaves_no_trace() -> None:
    class Remembering(Vgg):
        last = None

        def forward(self, x: Tensor) -> Tensor:
            self.last = super().forward(x)
            return self.last

    model = Remembering()
    for neuron in model.neurons:
        neuron.activity = snn.Activity()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    sca.attach_groups(model, batch()[0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(neuron.activity.spike_count is None and neuron.v is None for neuron in model.neurons)
    assert all(p.grad is None for p in model.parameters())
    assert model.last is None


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class DoubledApart(torch.autograd.Function):
    """With the method that sets the context apart, which goes another way through torch."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        return

    backward = Doubled.backward


@pytest.mark.parametrize("apply", [Doubled.apply, DoubledApart.apply, functools.partial(Doubled.apply)])
def test_attach_groups_follows_what_has_a_gradient_of_its_own(apply: Callable[[Tensor], Tensor]) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.neuron, self.head = conv(2, 8), firing(8), snn.ChannelLinear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            assert isinstance(x, Tensor)
            return self.head(apply(self.neuron(self.first(x))).mean((3, 4)))

    model, seen = Own(), []
    sys.setprofile(profiler := lambda *event: seen.append(event[1]))
    try:
        sca.attach_groups(model, torch.rand(T, 2, 2, 8, 8))
        assert sys.getprofile() is profiler
    finally:
        sys.setprofile(None)
    assert wiring(model) == {"first": ("first", "neuron", "head")}


class Memory:
    """State of a foreign neuron: an object, not a module, with slots and attributes."""

    __slots__ = ("__dict__", "v")

    def __init__(self) -> None:
        self.v, self.last = torch.zeros(()), []


class Keeping(nn.Module):
    """Keeps state as other libraries do: in dicts of dicts, lists, sets, objects, closures and tensors changed in
    place.
    """

    def __init__(self) -> None:
        super().__init__()
        self._memories: dict[str, object] = {"mask": None, "deep": [{"v": (0.0, {"h": None})}], "seen": {"none"}}
        self.memory = Memory()
        self.total = torch.zeros(())
        self.generator = torch.Generator()
        self.register_buffer("calls", torch.zeros(()))
        features: list[Tensor] = []
        self.features = lambda: features
        self.register_forward_hook(lambda module, inputs, output: features.append(output))

    def forward(self, x: Tensor) -> Tensor:
        if self._memories["mask"] is None:
            self._memories["mask"] = F.dropout(torch.ones_like(x[:1]), 0.5, self.training)
        self._memories["deep"][0]["v"][1]["h"] = x
        self._memories["deep"].append(x)
        self._memories["new"] = self._memories["seen"].add(x)
        self.memory.v, self.memory.last = x, [*self.memory.last, x]
        self.memory.more = x
        self.total.add_(torch.rand((), generator=self.generator))
        self.calls = self.calls + 1
        return x * self._memories["mask"]


def kept(keeping: Keeping) -> list:
    """All that it keeps, in an order in which it can be compared."""
    memory = keeping.memory
    held = [keeping._memories, memory.v, memory.last, list(vars(memory)), keeping.features(), keeping.calls]
    return copy.deepcopy([*held, keeping.total, keeping.generator.get_state()])


def test_attach_groups_and_probe_leave_no_trace_in_nested_containers_and_objects() -> None:
    model = Net(lambda net, s, x: net.keeping(s), keeping=Keeping())
    before = kept(model.keeping)
    sca.attach_groups(model, batch()[0])
    assert_equal_state(kept(model.keeping), before)
    assert list(wiring(model)) == ["conv1", "conv2"]
    scheduler = sca.SCAScheduler(model, torch.optim.SGD(model.parameters(), 0.1), **SETTINGS)
    keeping = model.keeping
    scheduler.probe(lambda: loss_of(model))
    assert keeping._memories == before[0]
    assert keeping.calls == keeping.total == 0
    loss_of(model).backward()  # the user's model runs, and keeps tensors
    held = keeping._memories["mask"], keeping._memories["deep"][-1], keeping.calls
    scheduler.probe(lambda: loss_of(model))
    assert held[0] is keeping._memories["mask"]
    assert held[1] is keeping._memories["deep"][-1]
    assert held[2] is keeping.calls
    assert held[2] == 1


def test_attach_groups_that_fails_leaves_no_trace_in_nested_containers() -> None:
    model = Net(lambda net, s, x: net.keeping(s).view(1, 2, 3), keeping=Keeping())
    before = kept(model.keeping)
    with pytest.raises(ValueError, match="tracing stopped"):
        sca.attach_groups(model, batch()[0])
    assert_equal_state(kept(model.keeping), before)


class KeepsInClass(nn.Module):
    last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        KeepsInClass.last = x
        return x


_RECORD: dict[str, list] = {"spikes": []}


def test_attach_groups_names_what_keeps_tensors_beyond_the_modules() -> None:
    model = Net(lambda net, s, x: net.keeps(s), keeps=KeepsInClass())
    with pytest.raises(ValueError, match=r"KeepsInClass keeps a tensor of the traced pass"):
        sca.attach_groups(model, batch()[0])
    KeepsInClass.last = None

    def middle(net, s, x):
        _RECORD["spikes"].append(s)
        return s

    with pytest.raises(ValueError, match=r"_RECORD of .*test_pruning_tracing keeps a tensor of the traced pass"):
        sca.attach_groups(Net(middle), batch()[0])
    _RECORD["spikes"].clear()


class RandomNet(nn.Module):
    """A random graph of blocks, depthwise convolutions, batch norms, additions, concatenations and repeated layers."""

    def __init__(self, steps: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv(2, 4), firing(4)])
        self.plan: list[tuple[str, list[int], list[int]]] = []  # kind, tensors, layers
        widths, blocks = [4], []
        for kind, first, second in steps:
            a, b = first % len(widths), second % len(widths)
            again = [layers for source, layers in blocks if source == widths[a]]
            if kind == "add" and widths[a] == widths[b]:
                widths.append(widths[a])
                self.plan.append((kind, [a, b], []))
            elif kind == "cat" and widths[a] + widths[b] < 30:
                widths.append(widths[a] + widths[b])
                self.plan.append((kind, [a, b], []))
            elif kind == "again" and again:
                widths.append(self.layers[again[-1][1]].num_features)
                self.plan.append(("layers", [a], again[-1]))
            else:
                sink = widths[a] if kind in ("depthwise", "norm") else 3 + second % 3
                new = [firing(sink)]
                if kind != "norm":
                    new.insert(0, conv(widths[a], sink, groups=sink if kind == "depthwise" else 1))
                at = [len(self.layers) + i for i in range(len(new))]
                self.layers.extend(new)
                if kind not in ("depthwise", "norm"):
                    blocks.append((widths[a], at))
                widths.append(sink)
                self.plan.append(("layers", [a], at))
        self.head = snn.ChannelLinear(sum(widths[-2:]), 4)

    def forward(self, x: Tensor) -> Tensor:
        tensors = [self.layers[1](self.layers[0](x[None]), time_steps=T)]
        for kind, sources, layers in self.plan:
            y = tensors[sources[0]]
            if kind == "add":
                y = y + tensors[sources[1]]
            if kind == "cat":
                y = torch.cat([y, tensors[sources[1]]], 2)
            for layer in layers:
                y = self.layers[layer](y)
            tensors.append(y)
        return self.head(torch.cat(tensors[-2:], 2).mean((0, 3, 4)))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["block", "depthwise", "norm", "add", "cat", "again"]),
            st.integers(0, 9),
            st.integers(0, 9),
        ),
        min_size=1,
        max_size=7,
    ),
    st.integers(0, 1000),
)
@settings(max_examples=20)
def test_compact_equals_masked_for_random_networks(steps: list[tuple[str, int, int]], seed: int) -> None:
    torch.manual_seed(seed)
    model = RandomNet(steps).eval()
    x = batch(2)[0]
    sca.attach_groups(model, x, prune_stream=True)
    for members in find_groups(model).values():
        channels = members.group.num_channels
        if members.group.prunable:
            members.group.set_active(torch.randperm(channels)[: max(1, channels // 2)])
    expected = masked(model)(x)
    for outputs in sca.compact(model)(x), model(x):
        assert ((outputs - expected).norm() <= 1e-6 * expected.norm()).item()
