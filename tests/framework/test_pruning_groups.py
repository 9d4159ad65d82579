"""find_groups(), channel axes (checklist: residual add, concat, shared weights, depthwise, Flatten -> Linear)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sca
from sca.cost.layers import channel_costs, connections, total
from sca.structure.groups import channel_axes, find_groups, parameter_axes
from sca_kernels import nn as snn
from tests.framework.pruning_nets import (
    SETTINGS,
    ConcatNet,
    ConvNet,
    DepthwiseNet,
    ResidualNet,
    TiedNet,
    loss_of,
    train_step,
)


def dims(module: nn.Module) -> dict[str, list[tuple[str, int, int]]]:
    return {name: [(a.group.name, a.dim, a.block) for a in axes] for name, axes in channel_axes(module).items()}


def test_find_groups_names_producers_neurons_and_consumers() -> None:
    groups = find_groups(ConvNet())
    assert {name: (list(m.producers), list(m.neurons), list(m.consumers)) for name, m in groups.items()} == {
        "first": (["conv1"], ["norm1"], ["conv2"]),
        "second": (["conv2"], ["norm2"], ["linear"]),
    }


def test_find_groups_ties_what_a_residual_add_ties() -> None:
    (stream,) = find_groups(ResidualNet()).values()
    assert list(stream.producers) == ["conv1", "conv2"]
    assert list(stream.consumers) == ["conv2", "linear"]
    assert list(stream.norms) == ["norm1", "norm2"]


def test_find_groups_gives_an_unnamed_group_the_name_of_its_first_module() -> None:
    group = snn.ChannelGroup(4)
    model = nn.Sequential(snn.ChannelConv2d(1, 4, 1, out_group=group), snn.BatchNormIF(4, group=group))
    assert list(find_groups(model)) == ["0"]


def test_find_groups_refuses_a_model_without_groups_and_equal_names() -> None:
    with pytest.raises(ValueError, match="no module carries a ChannelGroup"):
        find_groups(nn.Linear(2, 2))
    twins = nn.Sequential(*(snn.IF(group=snn.ChannelGroup(2, "twin")) for _ in range(2)))
    with pytest.raises(ValueError, match="more than one named twin"):
        find_groups(twins)


def test_channel_axes_of_convolution_norm_and_flattened_linear() -> None:
    model = ConvNet()
    assert dims(model.conv2) == {"weight": [("second", 0, 1), ("first", 1, 1)], "bias": [("second", 0, 1)]}
    assert dims(model.linear) == {"weight": [("second", 1, 9)]}
    assert set(dims(model.norm1)) == {"weight", "bias", "running_mean", "running_var"}


def test_channel_axes_of_depthwise_convolution_and_learnable_leak() -> None:
    model = DepthwiseNet()
    assert dims(model.depthwise) == {"weight": [("depth", 0, 1)], "bias": [("depth", 0, 1)]}
    assert "w" in dims(model.norm3)


def test_parameter_axes_refuses_weights_shared_between_different_groups() -> None:
    model = TiedNet()
    assert [axis.dim for axis in parameter_axes(model)[model.conv1.weight]] == [0, 1]
    with pytest.raises(ValueError, match=r"conv2.weight is shared with a module of other channel groups"):
        parameter_axes(TiedNet(other_group=True))


def test_find_groups_gives_the_reader_of_a_concatenation_to_each_of_its_parts() -> None:
    groups = find_groups(ConcatNet())
    assert {name: list(m.consumers) for name, m in groups.items()} == {
        "left": ["conv"],
        "right": ["conv"],
        "joint": ["linear"],
    }


def test_channel_group_concat_follows_its_parts() -> None:
    left, right = snn.ChannelGroup(3, "left"), snn.ChannelGroup(4, "right", prunable=False)
    both = snn.ChannelGroup.concat(left, snn.ChannelGroup.concat(right, left))
    assert (both.name, both.num_channels, both.prunable) == ("left+right+left", 10, False)
    assert both.parts == (left, right, left)
    assert both.index(torch.device("cpu")) is None
    left.set_active([0, 2])
    right.set_active([1])
    assert both.active.tolist() == both.index(torch.device("cpu")).tolist() == [0, 2, 4, 7, 9]
    assert (both.num_active, both.width, both.density) == (5, 5, 0.5)
    assert both.mask().nonzero().flatten().tolist() == both.active.tolist()
    with snn.probing([both]):
        assert left.probing
        assert both.width == 10
        assert both.index(torch.device("cpu")) is None
        assert torch.equal(both.probe_mask(torch.device("cpu")), both.mask())
    version = both.version
    left.set_active([1])
    assert both.version > version
    assert both.mask().tolist() == [i in (1, 4, 8) for i in range(10)]
    assert copy.deepcopy([both, left])[0].active.tolist() == [1, 4, 8]
    assert both == snn.ChannelGroup.concat(left, right, left) != snn.ChannelGroup.concat(left, right)
    assert snn.ChannelGroup.concat(left) is left
    with pytest.raises(TypeError, match=r"set_active: .* is a view"):
        both.set_active([0])
    with pytest.raises(ValueError, match="groups: expected at least one"):
        snn.ChannelGroup.concat()


@pytest.mark.parametrize("net", [ConvNet, ResidualNet, DepthwiseNet, ConcatNet, TiedNet])
@pytest.mark.parametrize("allocation", ["global", "layer", "synops"])
def test_scheduler_prunes_regrows_and_compacts_any_wiring(net: type[nn.Module], allocation: str) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    scheduler = sca.SCAScheduler(model, optimizer, allocation=allocation, regrow_init="reinit", **SETTINGS)
    regrown = 0
    for _ in range(6):
        train_step(model, optimizer)
        if scheduler.wants_probe:
            scheduler.probe(lambda: loss_of(model))
        event = scheduler.step()
        regrown += 0 if event is None else event.regrown
    assert regrown > 0
    assert scheduler.density == pytest.approx(0.5, abs=0.05)
    model.eval()
    small = sca.compact(model)
    x = torch.randn(3, 2, 6, 6)
    torch.testing.assert_close(small(x), model(x), atol=1e-6, rtol=0)
    assert sum(p.numel() for p in small.parameters()) < 0.75 * sum(p.numel() for p in model.parameters())


def test_connections_count_active_weights_exactly() -> None:
    model = DepthwiseNet()
    groups = find_groups(model)
    groups["depth"].group.set_active([0, 3, 4])
    groups["out"].group.set_active([1, 5])
    masks = {name: members.group.mask() for name, members in groups.items()}
    layers = connections(model, groups)
    assert total(layers, masks) == 3 * 2 + 3 * 9 + 3 * 2 + 2 * 4
    costs = channel_costs(layers, masks)
    assert (
        costs["depth"].tolist() == [2 + 9 + 2] * 8
    )  # beside the active ones: its filter, its depthwise filter, its two readers
    assert costs["out"].tolist() == [3 + 4] * 6
