"""report_cost(): exact counts against sums made by hand."""

from __future__ import annotations

import copy
import io
import json

import pytest
import torch
from rich.console import Console
from torch import nn

import sca
from sca.cost import connectivity, density
from sca.cost.layers import active_share, connections
from sca.structure.groups import find_groups
from sca_kernels import nn as snn
from tests.framework.pruning_nets import ConcatNet, ConvNet, DepthwiseNet, ResidualNet, T, TiedNet, batch, loss_of


def pruned() -> ConvNet:
    model = ConvNet()
    for _ in range(3):
        loss_of(model)
    model.norm1.group.set_active([0, 2, 3])
    model.norm2.group.set_active([1, 4, 5, 7])
    return model.eval()


def test_report_cost_counts_parameters_and_connectivity_exactly() -> None:
    report = sca.report_cost(pruned(), [batch()])
    conv1, conv2, linear = report.layers
    assert (conv1.weights, conv1.active_weights) == (6 * 2 * 9, 3 * 2 * 9)
    assert (conv2.weights, conv2.active_weights) == (8 * 6 * 9, 4 * 3 * 9)
    assert (conv2.parameters, conv2.active_parameters) == (8 * 6 * 9 + 8, 4 * 3 * 9 + 4)
    assert (linear.weights, linear.active_weights) == (4 * 8 * 9, 4 * 4 * 9)
    assert report.connectivity == (54 + 108 + 144) / (108 + 432 + 288)
    assert report.parameters == sum(p.numel() for p in ConvNet().parameters())
    assert report.active_parameters == sum(p.numel() for p in sca.compact(pruned()).parameters())


def test_report_cost_counts_operations_by_each_layers_own_input() -> None:
    model = pruned()
    inputs = {}
    for name in ("conv2", "linear"):
        getattr(model, name).register_forward_pre_hook(lambda m, args, name=name: inputs.update({name: args[0]}))
    report = sca.report_cost(model, [batch()])
    conv1, conv2, linear = report.layers
    n = 5
    assert not conv1.spiking
    assert (conv1.macs, conv1.acs) == (3 * 2 * 9 * 36, 0)
    assert conv1.presentations == 1
    rate = float(inputs["conv2"].count_nonzero()) / inputs["conv2"].numel()  # behind the pool
    assert conv2.spiking
    assert conv2.input_rate == pytest.approx(rate)
    assert conv2.acs == pytest.approx(rate * 4 * 3 * 9 * 9 * T)
    assert linear.acs == pytest.approx(float(inputs["linear"].count_nonzero()) * 4 / n)
    assert report.synops == conv1.macs + conv2.acs + linear.acs
    assert report.energy_pj == pytest.approx(4.6 * conv1.macs + 0.9 * (conv2.acs + linear.acs))
    assert report.dense_macs == T * (6 * 2 * 9 * 36 + 8 * 6 * 9 * 9 + 4 * 72)
    assert report.time_steps == T
    assert report.samples == n


def test_report_cost_counts_the_first_layer_as_often_as_it_runs() -> None:
    """As T images in a sequence, the first convolution runs T times; the dense operations are the same."""
    model = nn.Sequential(snn.ChannelConv2d(2, 4, 3), snn.BatchNormLIF(4)).eval()
    x, labels = batch()
    still = sca.report_cost(model, [(x[None], labels)], time_steps=T)
    sequence = sca.report_cost(model, [(x.expand(T, *x.shape), labels)])
    assert [r.layers[0].presentations for r in (still, sequence)] == [1, T]
    assert sequence.macs == T * still.macs
    assert sequence.dense_macs == still.dense_macs == sequence.macs
    assert "Computed once" in still.table().caption
    assert "Computed once" not in sequence.table().caption


def averaging_network() -> nn.Module:
    """One convolution whose input is what an average pool leaves of the spikes it is given."""
    return nn.Sequential(snn.AvgPool2d(2), snn.ChannelConv2d(3, 5, 3, padding=1, bias=False))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [2, 3, 4])
def test_report_cost_counts_each_spike_behind_an_average_pool(window, dtype) -> None:
    spikes = (torch.rand(4, 3, 12, 12, generator=torch.Generator().manual_seed(0)) < 0.2).float()
    model = averaging_network().to(dtype)
    model[0] = snn.AvgPool2d(window)
    (conv,) = sca.report_cost(model, [spikes.to(dtype)]).layers
    assert (conv.spiking, conv.window, conv.macs) == (True, window**2, 0)
    assert conv.acs == pytest.approx(float(spikes.sum()) / 4 * 5 * 9)  # at borders, too, as if each met nine weights
    pooled = torch.nn.functional.avg_pool2d(spikes, window)
    assert conv.input_rate == float(pooled.count_nonzero()) / pooled.numel()


def test_report_cost_sees_averages_where_one_batch_has_none() -> None:
    """All windows of it hold four spikes or none; they count as four here, too."""
    spikes = (torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    whole = torch.ones(4, 3, 4, 4)
    (conv,) = sca.report_cost(averaging_network(), [whole, spikes]).layers
    assert (conv.spiking, conv.window) == (True, 4)
    assert conv.acs == pytest.approx(float(spikes.sum() + whole.sum()) / 8 * 5 * 9)


@pytest.mark.parametrize(
    ("values", "spiking"),
    [([0, 1], True), ([0, 2], False), ([0, 1, 3], False), ([-1, 0, 1], False), ([0.25, 0.3], False)],
    ids=["binary", "counts", "counts and ones", "signs", "other shares"],
)
def test_report_cost_tells_spikes_from_values(values, spiking) -> None:
    x = torch.tensor(values)[
        torch.randint(len(values), (2, 3, 6, 6), generator=torch.Generator().manual_seed(1))
    ].float()
    model = nn.Sequential(snn.ChannelConv2d(3, 5, 1, bias=False))
    (conv,) = sca.report_cost(model, [x]).layers
    assert (conv.spiking, conv.window) == (spiking, 1)
    assert (conv.macs, conv.acs) == (0 if spiking else 3 * 5 * 36, float(x.sum()) / 2 * 5 if spiking else 0)


def test_report_cost_says_what_goes_into_the_first_layer_and_how_often() -> None:
    model = sca.models.build("conv5fc1", in_channels=2, image_size=8, width=0.1, time_steps=3)
    frames = torch.randint(3, (3, 2, 2, 8, 8), generator=torch.Generator().manual_seed(0)).float()
    counts, binary = (sca.report_cost(model, [x]) for x in (frames, frames.clamp(max=1)))
    assert "Frames go into conv1 at every time step, as values: MACs." in counts.caption
    assert "Frames go into conv1 at every time step, as spikes: ACs." in binary.caption
    assert "Behind an average pool (conv2) each spike of a window counts by itself." in binary.caption
    assert "Computed once, not T times: conv1." in sca.report_cost(model, [frames[0]]).caption
    assert counts.layers[0].macs == 3 * 2 * 6 * 9 * 64
    assert binary.layers[0].acs == pytest.approx(float(frames.clamp(max=1).sum()) / 2 * 6 * 9)


def test_cost_report_of_before_windows_were_stored_is_read() -> None:
    report = sca.report_cost(pruned(), [batch()])
    stored = report.to_dict()
    for layer in stored["layers"]:
        del layer["window"]
    assert sca.cost.CostReport.from_dict(stored) == report


def test_report_cost_of_a_compact_network_is_that_of_the_pruned_one() -> None:
    model = pruned()
    ours, small = (sca.report_cost(m, [batch()]) for m in (model, sca.compact(model)))
    assert small.synops == pytest.approx(ours.synops)
    assert small.parameters == ours.active_parameters
    assert small.connectivity == 1


def test_report_cost_of_a_depthwise_network() -> None:
    model = DepthwiseNet().eval()
    model.norm1.group.set_active([0, 1, 5])
    _, depthwise, _, _ = sca.report_cost(model, [batch()]).layers
    assert depthwise.active_weights == 3 * 9
    assert depthwise.acs == pytest.approx(depthwise.input_rate * 3 * 9 * 36 * T)
    assert depthwise.dense_macs == 8 * 9 * 36 * T


@pytest.mark.parametrize("kind", [ConvNet, ResidualNet, DepthwiseNet, ConcatNet, TiedNet])
def test_connectivity_is_one_figure_wherever_it_is_asked_for(kind) -> None:
    """Of the model, of its cost report, of what the scheduler decides by, and by the sizes of the compact weights."""
    model = kind().eval()
    for members in find_groups(model).values():
        members.group.set_active(range(0, members.group.num_channels, 2))
    cost, groups = sca.report_cost(model, [batch()]), find_groups(model)
    masks = {name: members.group.mask() for name, members in groups.items()}
    expected = sum(layer.active_weights for layer in cost.layers) / sum(layer.weights for layer in cost.layers)
    assert cost.connectivity == connectivity(model) == expected
    assert active_share(connections(model, groups), masks) == expected
    small = dict(sca.compact(model).named_modules())
    assert [layer.active_weights for layer in cost.layers] == [
        small[layer.name].weight.numel() for layer in cost.layers
    ]


def test_report_cost_needs_no_names_of_groups_and_no_groups() -> None:
    model = pruned()
    expected = sca.report_cost(model, [batch()])
    for name in "", "same":
        for norm in (model.norm1, model.norm2):
            norm.group.name = name
        assert sca.report_cost(model, [batch()]).connectivity == expected.connectivity == connectivity(model)
    assert connectivity(sca.compact(pruned())) == 1


def test_report_cost_of_a_transposed_convolution_counts_what_each_input_reaches() -> None:
    """2 channels of 3 x 3 inputs, each sent to 2 x 2 outputs of 5 channels."""
    model = nn.Sequential(nn.ConvTranspose2d(2, 5, 2, stride=2)).eval()
    (layer,) = sca.report_cost(model, [torch.rand(4, 2, 3, 3)]).layers
    assert (layer.weights, layer.active_weights, layer.presentations) == (2 * 5 * 4, 2 * 5 * 4, 1)
    assert layer.macs == layer.dense_macs == 9 * 2 * 5 * 4


def test_report_cost_counts_the_active_channels_of_signals_and_transposed_convolutions() -> None:
    a, b = snn.ChannelGroup(4, "a"), snn.ChannelGroup(6, "b")
    conv = snn.ChannelConv1d(2, 4, 3, padding=1, bias=False, out_group=a)
    up = snn.ChannelConvTranspose1d(4, 6, 2, stride=2, in_group=a, out_group=b)
    model = nn.Sequential(conv, snn.BatchNormIF(4, group=a), up).eval()
    a.set_active([0, 2])
    b.set_active([1, 2, 5])
    nn.init.constant_(model[1].bias, 2.0)  # all fire
    first, second = sca.report_cost(model, [(torch.rand(T, 5, 2, 7), torch.zeros(5))]).layers
    assert (first.weights, first.active_weights, first.macs) == (4 * 2 * 3, 2 * 2 * 3, T * 2 * 2 * 3 * 7)
    assert (second.weights, second.active_weights) == (4 * 6 * 2, 2 * 3 * 2)
    assert second.active_parameters == 2 * 3 * 2 + 3
    assert second.input_rate == 1
    assert second.acs == pytest.approx(T * 2 * 3 * 2 * 7)


def test_report_cost_of_a_grouped_convolution_with_a_channel_group() -> None:
    group = snn.ChannelGroup(8, "wide", prunable=False)
    grouped = snn.ChannelConv2d(8, 8, 3, padding=1, groups=2, bias=False, in_group=group, out_group=group)
    model = nn.Sequential(snn.ChannelConv2d(2, 8, 1, bias=False, out_group=group), grouped).eval()
    first, second = sca.report_cost(model, [torch.rand(4, 2, 3, 3)]).layers
    assert (first.active_weights, second.active_weights) == (2 * 8, 8 * 4 * 9)
    assert second.macs == second.dense_macs == 9 * 8 * 4 * 9
    assert connectivity(model) == 1


def test_density_is_that_of_the_groups_that_can_be_pruned() -> None:
    free, fixed = snn.ChannelGroup(8), snn.ChannelGroup(100, prunable=False)
    free.set_active(range(2))
    assert density([free, fixed]) == 2 / 8
    assert density([fixed]) == density([]) == 1


def test_report_cost_means_are_over_all_samples_of_all_batches() -> None:
    model = pruned()
    x, labels = batch()
    whole = sca.report_cost(model, [(x, labels)])
    parts = sca.report_cost(model, [(x[:2], labels[:2]), (x[2:], labels[2:])])
    assert parts.samples == 5
    assert parts.synops == pytest.approx(whole.synops)
    assert sca.report_cost(model, [(x, labels)] * 3, max_batches=1).samples == 5


def test_report_cost_leaves_the_model_as_it_was() -> None:
    model = pruned().train()
    model.norm1.eval()
    model.norm1.activity = snn.Activity(training_only=False)
    loss_of(model)
    state = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    counts = model.norm1.activity.positions.clone()
    sca.report_cost(model, [batch()])
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.norm1.activity.positions, counts)
    assert not any(m._forward_hooks for m in model.modules())


def test_report_cost_puts_modes_and_hooks_back_when_the_model_fails() -> None:
    model = pruned().train()
    with pytest.raises(ValueError):
        sca.report_cost(model, [(torch.zeros(2, 7, 6, 6), torch.zeros(2))])
    assert model.training
    assert not any(m._forward_hooks for m in model.modules())


def test_report_cost_as_table_and_dict() -> None:
    report = sca.report_cost(pruned(), [batch()])
    assert json.loads(json.dumps(report.to_dict()))["layers"][1]["connectivity"] == report.layers[1].connectivity
    assert report.to_dict()["synops"] == report.synops
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report.table())
    text = console.export_text()
    for words in (
        "first",
        "second",
        "linear",
        "analog x 1",
        f"x T = {T}",
        "Computed once, not T times: first",
        "4.6 pJ",
    ):
        assert words in text


def test_report_cost_refuses_bad_input() -> None:
    with pytest.raises(ValueError, match="loader: expected at least one sample"):
        sca.report_cost(pruned(), [])
    with pytest.raises(TypeError, match="loader: expected batches that begin with a tensor, got str"):
        sca.report_cost(pruned(), [("x", 1)])
    with pytest.raises(ValueError, match="max_batches: expected at least 1, got 0"):
        sca.report_cost(pruned(), [batch()], max_batches=0)
