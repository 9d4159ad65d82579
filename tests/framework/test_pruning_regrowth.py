"""SCAScheduler: probes and regrowth (checklist, "Prune, regrow")."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sca
from sca.pruning.regrow import REGROW_INITS
from sca.structure.groups import find_groups
from sca_kernels import nn as snn
from tests.framework.pruning_nets import ConvNet, active, loss_of, train_step
from tests.framework.scheduled import advance, cut, everything, make
from tests.framework.watched import assert_equal_state

# --- regrowth


def test_probe_loss_is_the_loss_of_the_pruned_network() -> None:
    model, _, scheduler = make(cut(ConvNet()))
    pruned = loss_of(model)
    seen = []
    scheduler.probe(lambda: seen.append(loss_of(model)) or seen[0])
    torch.testing.assert_close(seen[0], pruned)


def test_probe_loss_is_the_pruned_one_where_a_dormant_bias_alone_would_fire() -> None:
    """A mask before the batch norm would leave the bias alive as a constant."""
    model = cut(ConvNet())
    nn.init.constant_(model.norm1.bias, 5.0)
    model, _, scheduler = make(model)
    pruned = loss_of(model)
    scheduler.probe(lambda: torch.testing.assert_close(loss := loss_of(model), pruned) or loss)


def test_probe_leaves_no_trace() -> None:
    """Neither in modules with groups nor beside them: dropout draws, a plain batch norm tracks, an ungrouped neuron
    counts.
    """

    class Beside(ConvNet):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.dropout = nn.BatchNorm2d(2), nn.Dropout(0.3)
            self.loose = snn.LIF()
            self.loose.activity = snn.Activity()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(self.loose(self.dropout(self.stem(x))[None])[0])

    model, optimizer, scheduler = make(cut(Beside()))
    train_step(model, optimizer)
    model.loose.activity.record = pytest.fail
    before = everything(model, scheduler)
    scheduler.probe(lambda: loss_of(model))
    assert_equal_state(everything(model, scheduler), before)
    assert scheduler.state_dict()["gradients"]["norm1"].any()


@pytest.mark.parametrize("ran_before", [False, True])
def test_probe_leaves_the_state_of_stateful_neurons(ran_before: bool) -> None:
    model = nn.Sequential(cut(ConvNet(stateful=True)))
    if ran_before:
        loss_of(model)
    states = [model[0].norm1.v, model[0].norm2.v]
    model, _, scheduler = make(model)
    scheduler.probe(lambda: loss_of(model))
    assert model[0].norm1.v is states[0]
    assert model[0].norm2.v is states[1]


def test_probe_trains_on_exactly_as_without_it() -> None:
    results = []
    for probes in range(3):
        torch.manual_seed(0)
        model, optimizer, scheduler = make(cut(ConvNet()), start=50, stop=50)
        for _ in range(3):
            train_step(model, optimizer)
            for _ in range(probes):
                scheduler.probe(lambda model=model: loss_of(model))
            scheduler.step()
        results.append(model.state_dict())
    assert_equal_state(results[0], results[1])
    assert_equal_state(results[0], results[2])


def test_probe_gradient_is_that_of_the_straight_through_gate() -> None:
    """The gate leaves the active channels' gradient as it is, and gives dormant ones what theirs would be if it were
    open.
    """
    model, _, scheduler = make(cut(ConvNet()))
    scheduler.probe(lambda: loss_of(model))
    probed = scheduler.state_dict()["gradients"]["norm2"]
    loss_of(model).backward()
    assert not model.norm2.weight.grad[model.norm2.group.dormant].any()
    kept = model.norm2.group.active
    torch.testing.assert_close(probed[kept].float(), model.norm2.weight.grad[kept], atol=1e-6, rtol=1e-4)
    assert probed[model.norm2.group.dormant].any()


def test_probes_add_up() -> None:
    model, _, scheduler = make(cut(ConvNet()))
    scheduler.probe(lambda: loss_of(model))
    once = scheduler.state_dict()["gradients"]["norm1"]
    scheduler.probe(lambda: 2 * loss_of(model))
    torch.testing.assert_close(scheduler.state_dict()["gradients"]["norm1"], 3 * once)


def test_regrowth_takes_the_dormant_channels_of_largest_gamma_gradient_and_none_cut_just_now() -> None:
    model, optimizer, scheduler = make(
        cut(ConvNet()), start=1, stop=9, interval=1, density=0.5, schedule="constant", regrow_fraction=0.4
    )
    train_step(model, optimizer)
    assert scheduler.wants_probe
    scheduler.probe(lambda: loss_of(model))
    assert not scheduler.wants_probe
    gradients = scheduler.state_dict()["gradients"]
    promise = {
        (name, c): abs(gradients[norm][c].item())
        for name, norm in (("first", "norm1"), ("second", "norm2"))
        for c in find_groups(model)[name].group.dormant.tolist()
    }
    event = scheduler.step()
    best = sorted(promise, key=promise.get, reverse=True)[: event.regrown]
    assert event.regrown == 3  # 0.4 of the 7 that stay
    assert {(name, c) for name, change in event.groups.items() for c in change.regrown.tolist()} == set(best)


def test_step_without_a_probe_cuts_to_the_same_count_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer, scheduler = make()
    events = []
    with caplog.at_level(logging.WARNING, "sca"):
        for _ in range(12):
            train_step(model, optimizer)
            events.append(scheduler.step())
    assert [e.density for e in events if e][-1] == pytest.approx(6 / 14)
    assert sum(e.regrown for e in events if e) == 0
    assert caplog.text.count("no probe was taken") == 1


def test_wants_probe_only_before_an_update_that_regrows() -> None:
    model, optimizer, scheduler = make()
    wanted = []
    for _ in range(14):
        train_step(model, optimizer)
        wanted.append(scheduler.wants_probe)
        if scheduler.wants_probe:
            scheduler.probe(lambda: loss_of(model))
        scheduler.step()
    # not at steps 2 and 4, before which all are active, nor at 12, where the fraction is 0
    assert [step for step, asked in enumerate(wanted, 1) if asked] == [6, 8, 10]


def test_constant_regrowth_is_a_share_of_all_channels() -> None:
    settings = {"density": 0.5, "schedule": "constant", "regrow_fraction": 0.15, "regrow_schedule": "constant"}
    model, optimizer, scheduler = make(**settings)
    assert [event.regrown for event in advance(model, optimizer, scheduler, 12)] == [0, 2, 2, 2, 2, 2]


def regrow_all(model: nn.Module, how: str) -> tuple[sca.SCAScheduler, Any]:
    """One update that takes every dormant channel of ``model`` back."""
    settings = {"start": 1, "stop": 5, "interval": 4, "density": 1.0, "regrow_init": how, "regrow_fraction": 0.9}
    model, optimizer, scheduler = make(model, **settings)
    for _ in range(2):  # optimizer state for all channels, as if they had been pruned later
        full = active(model)
        for members in scheduler.groups.values():
            members.group.set_active(range(members.group.num_channels))
        train_step(model, optimizer)
        for name, indices in full.items():
            scheduler.groups[name].group.set_active(indices)
    scheduler.probe(lambda: loss_of(model))
    model.before = copy.deepcopy(model.state_dict())
    model.loss_before = loss_of(model.eval()).detach()
    model.train()
    event = scheduler.step()
    assert scheduler.density == 1
    return optimizer, event


def test_regrown_channels_keep_their_weights_and_lose_their_optimizer_state() -> None:
    model = cut(ConvNet())
    optimizer, event = regrow_all(model, "keep")
    state = model.state_dict()
    assert_equal_state({k: state[k] for k in model.before}, model.before)
    momentum = optimizer.state[model.conv2.weight]["momentum_buffer"]
    first, second = (event.groups[name].regrown for name in ("first", "second"))
    assert first.tolist() == [1, 4, 5]
    assert second.tolist() == [0, 2, 3, 6]
    assert not momentum[second].any()
    assert not momentum[:, first].any()
    assert momentum[[1, 4, 5, 7]][:, [0, 2, 3]].all()
    columns = optimizer.state[model.linear.weight]["momentum_buffer"].view(4, 8, 9)
    assert not columns[:, second].any()
    assert columns[:, 1].any()
    for p in (model.norm2.weight, model.norm2.bias, model.conv2.bias):
        assert not optimizer.state[p]["momentum_buffer"][second].any()


def test_regrown_channels_set_to_zero_change_no_output() -> None:
    model = cut(ConvNet())
    regrow_all(model, "zero")
    assert not model.conv2.weight[:, [1, 4, 5]].any()
    assert torch.equal(model.conv1.weight, model.before["conv1.weight"])
    torch.testing.assert_close(loss_of(model.eval()).detach(), model.loss_before)


def test_regrown_channels_that_a_transposed_convolution_reads_are_zero_in_its_rows() -> None:
    group, sink = snn.ChannelGroup(4, "g"), snn.ChannelGroup(4, "sink")
    up = snn.ChannelConvTranspose1d(4, 4, 3, in_group=group, out_group=sink)
    before = copy.deepcopy(up.state_dict())
    REGROW_INITS["zero"](find_groups(up)["g"], torch.tensor([1, 2]), torch.Generator())
    assert not up.weight[[1, 2]].any()
    assert torch.equal(up.weight[[0, 3]], before["weight"][[0, 3]])
    assert torch.equal(up.bias, before["bias"])


def test_regrown_channels_drawn_afresh_are_like_the_others_and_those_stay() -> None:
    model = cut(ConvNet(first=64))
    regrow_all(model, "reinit")
    new, old = model.conv1.weight[4:].detach(), model.conv1.weight[[0, 2, 3]].detach()
    assert torch.equal(old, model.before["conv1.weight"][[0, 2, 3]])
    assert not (new == model.before["conv1.weight"][4:]).any()
    assert 0.7 < new.std() / old.std() < 1.4
    torch.testing.assert_close(model.norm1.weight[4:], model.norm1.weight[[0, 2, 3]].mean().expand(60))


# --- two shortcuts that do not work


def test_shortcut_zeroing_a_channel_and_waiting_for_its_gradient_never_regrows_it() -> None:
    """Filter and gamma have exactly no gradient; what would move them is leftover momentum alone. The probe has one."""
    model = ConvNet()
    with torch.no_grad():
        for p in (model.conv1.weight, model.norm1.weight, model.norm1.bias):
            p[4] = 0
    loss_of(model).backward()
    assert not model.conv1.weight.grad[4].any()
    assert model.norm1.weight.grad[4] == 0
    assert model.norm1.weight.grad[3] != 0

    fresh = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    fresh.step()
    assert not model.conv1.weight[4].any()
    fresh.state[model.conv1.weight]["momentum_buffer"][4] = 1.0  # what training left behind before the cut
    fresh.step()
    assert model.conv1.weight[4].any()

    model, _, scheduler = make(cut(ConvNet()))
    scheduler.probe(lambda: loss_of(model))
    assert scheduler.state_dict()["gradients"]["norm1"][4] != 0


@pytest.mark.parametrize("surrogate", ["piecewise_quadratic", "rectangular"])
def test_shortcut_probing_with_gamma_zero_sees_no_gradient(surrogate: str) -> None:
    """The potential stays at 0, where these surrogates vanish; with the stored gamma it moves."""
    found = {}
    for gamma in "zero", "stored":
        torch.manual_seed(0)
        model = cut(ConvNet(surrogate=surrogate))
        dormant = model.norm1.group.dormant
        with torch.no_grad():
            model.norm1.bias[dormant] = 0
            model.norm1.weight[dormant] = 0 if gamma == "zero" else 1
        model, _, scheduler = make(model)
        scheduler.probe(lambda model=model: loss_of(model))
        found[gamma] = scheduler.state_dict()["gradients"]["norm1"][dormant]
    assert not found["zero"].any()
    assert found["stored"].any()
