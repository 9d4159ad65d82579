"""compact() (checklist: masked = compact on a batch, also when a dormant channel's beta alone would make it fire)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sca
from sca.structure.groups import carried, find_groups
from sca_kernels import nn as snn
from tests.framework.pruning_nets import (
    ConcatNet,
    ConvNet,
    DepthwiseNet,
    ResidualNet,
    TiedNet,
    batch,
    loss_of,
    train_step,
)


def pruned(net: type[nn.Module]) -> nn.Module:
    """With random active channels, running statistics that are not those of a fresh network, in eval mode."""
    model = net()
    for _ in range(3):
        loss_of(model)
    for members in find_groups(model).values():
        c = members.group.num_channels
        members.group.set_active(torch.randperm(c)[: max(1, c // 2)])
    return model.eval()


@pytest.mark.parametrize("net", [ConvNet, ResidualNet, DepthwiseNet, ConcatNet, TiedNet])
@pytest.mark.parametrize("training", [False, True])
def test_compact_gives_the_same_outputs_and_gradients(net: type[nn.Module], training: bool) -> None:
    model = pruned(net).train(training)
    small = sca.compact(model)
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    x, _ = batch()
    torch.testing.assert_close(small(x), model(x), atol=1e-6, rtol=0)
    loss_of(model).backward()
    loss_of(small).backward()
    torch.testing.assert_close(small.linear.bias.grad, model.linear.bias.grad)


def test_compact_equals_the_network_masked_behind_its_neurons() -> None:
    """The full-width network whose dormant spikes are multiplied by 0."""
    model = pruned(ConvNet)
    small = sca.compact(model)
    with snn.probing(members.group for members in find_groups(model).values()):
        masked = model(batch()[0])
    torch.testing.assert_close(small(batch()[0]), masked, atol=1e-6, rtol=0)


def test_compact_equals_the_masked_network_where_a_dormant_bias_alone_would_fire() -> None:
    model = pruned(ConvNet)
    with torch.no_grad():
        for norm in (model.norm1, model.norm2):
            norm.bias[norm.group.dormant] = 10.0
    with snn.probing(members.group for members in find_groups(model).values()):
        masked = model(batch()[0])
    for result in sca.compact(model)(batch()[0]), model(batch()[0]):
        torch.testing.assert_close(result, masked, atol=1e-6, rtol=0)


def test_compact_is_physically_small_and_has_no_group() -> None:
    model = pruned(ConvNet)
    model.norm1.group.set_active([1, 2])
    model.norm2.group.set_active([0, 3, 6])
    model.norm1.activity = snn.Activity()
    small = sca.compact(model)
    assert small.conv2.weight.shape == (3, 2, 3, 3)
    assert small.linear.weight.shape == (4, 27)
    assert small.norm2.running_var.shape == (3,)
    assert (small.conv1.out_channels, small.conv2.in_channels, small.conv2.out_channels) == (2, 2, 3)
    assert (small.linear.in_features, small.linear.out_features, small.norm1.num_features) == (27, 4, 2)
    assert small.widths == {"first": 2, "second": 3}
    assert small.norm1.activity is None
    assert not any(carried(m, role) for m in small.modules() for role in ("group", "in_group", "out_group"))
    assert isinstance(small.conv1, nn.Conv2d)
    assert list(small.state_dict()) == list(model.state_dict())


def test_compact_of_a_depthwise_convolution_has_fewer_groups() -> None:
    model = pruned(DepthwiseNet)
    small = sca.compact(model)
    assert small.depthwise.groups == small.depthwise.in_channels == small.depthwise.out_channels == 4
    assert small.norm3.w.shape == (3,)


def test_compact_keeps_shared_weights_shared() -> None:
    small = sca.compact(pruned(TiedNet))
    assert small.conv1.weight is small.conv2.weight


def test_compact_leaves_the_original_as_it_was() -> None:
    model = pruned(ConvNet)
    before = copy.deepcopy(model.state_dict())
    active = {name: members.group.active.clone() for name, members in find_groups(model).items()}
    small = sca.compact(model)
    nn.init.zeros_(small.conv1.weight)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    for name, members in find_groups(model).items():
        assert torch.equal(members.group.active, active[name])
    assert "widths" not in model.config


def test_compact_of_a_built_model_is_rebuilt_from_its_config() -> None:
    model = sca.models.build("vgg5", num_classes=4, in_channels=2, time_steps=2, image_size=8, width=0.25)
    for members in find_groups(model).values():
        members.group.set_active(range(0, members.group.num_channels, 3))
    small = sca.compact(model.eval())
    assert small.config["widths"] == small.widths
    rebuilt = sca.models.build(**small.config)
    rebuilt.load_state_dict(small.state_dict())
    x = torch.randn(2, 2, 8, 8)
    torch.testing.assert_close(rebuilt.eval()(x), model(x), atol=1e-6, rtol=0)


def test_compact_keeps_the_layout_of_weights() -> None:
    model = pruned(ConvNet).to(memory_format=torch.channels_last)
    small = sca.compact(model)
    assert small.conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_compact_network_trains_on() -> None:
    small = sca.compact(pruned(ConvNet)).train()
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    losses = [train_step(small, optimizer) for _ in range(20)]
    assert losses[-1] < losses[0]


def test_compact_of_a_model_that_keeps_tensors_of_a_graph_starts_afresh() -> None:
    model = pruned(ConvNet)
    expected = model(batch()[0])
    model.norm1.stateful = model.norm2.stateful = True
    outputs = model(batch()[0])
    model.linear.seen = {"outputs": [outputs]}
    state = model.norm1.v
    assert state.grad_fn is not None
    small = sca.compact(model)
    assert model.norm1.v is state
    assert small.norm1.v is small.norm2.v is None
    torch.testing.assert_close(small(batch()[0]), expected, atol=1e-6, rtol=0)
    (seen,) = small.linear.seen["outputs"]
    assert torch.equal(seen, outputs)
    assert not seen.requires_grad


class Shuffled(ConvNet):
    """With modules whose ``groups`` are no groups of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.shuffle = nn.ChannelShuffle(2)
        self.other = nn.Identity()
        self.other.groups = ["a", "b"]


def test_compact_and_cost_know_a_convolution_from_what_else_has_groups() -> None:
    model = pruned(Shuffled)
    torch.testing.assert_close(sca.compact(model)(batch()[0]), model(batch()[0]), atol=1e-6, rtol=0)
    assert 0 < sca.report_cost(model, [batch()]).connectivity < 1


def test_compact_brings_no_hook_of_the_scheduler_along() -> None:
    model = ConvNet()
    settings = {"start": 1, "stop": 9, "interval": 1, "density": 0.5, "min_channels": 2, "target": "synops"}
    sca.SCAScheduler(model, torch.optim.SGD(model.parameters(), 0.1), **settings)
    assert model.conv1._forward_hooks
    assert not any(module._forward_hooks for module in sca.compact(model).modules())
    assert model.conv1._forward_hooks


def test_compact_network_is_pruned_and_compacted_again_under_the_same_names() -> None:
    model = sca.models.build("preresnet20", num_classes=4, in_channels=2, time_steps=2, image_size=8, width=0.5)
    for round in range(2):
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        settings = {"start": 1, "stop": 1, "interval": 1, "density": 0.7, "min_channels": 1, "regrow_fraction": 0.0}
        scheduler = sca.SCAScheduler(model, optimizer, example_input=torch.zeros(2, 2, 8, 8), **settings)
        before = {name: members.group.num_channels for name, members in scheduler.groups.items()}
        nn.functional.cross_entropy(model(torch.randn(5, 2, 8, 8)).mean(0), torch.arange(5) % 4).backward()
        optimizer.step()
        scheduler.step()
        model.eval()
        small = sca.compact(model)
        assert set(small.widths) <= set(before)
        assert sum(small.widths.values()) < sum(before.values()), round
        x = torch.randn(3, 2, 8, 8)
        torch.testing.assert_close(small(x), model(x), atol=1e-6, rtol=0)
        rebuilt = sca.models.build(**small.config).eval()
        rebuilt.load_state_dict(small.state_dict())
        torch.testing.assert_close(rebuilt(x), small(x), atol=1e-6, rtol=0)
        model = small.train()


def test_compact_refuses_a_model_without_groups() -> None:
    with pytest.raises(ValueError, match="no module carries a ChannelGroup"):
        sca.compact(nn.Linear(2, 2))
