"""Strategies as names, objects and entry points; criteria that look at single passes."""

from __future__ import annotations

import copy
import gc
import importlib.metadata
import sys
import types
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from sca.pruning import SCAScheduler
from sca.pruning.allocation import by_value
from sca.pruning.criteria import CRITERIA, Criterion, GroupContext
from sca.pruning.schedule import Plan
from sca.pruning.settings import EXTENSIONS
from sca_kernels import nn as snn
from tests.framework.pruning_nets import SETTINGS, ConcatNet, ConvNet, DepthwiseNet, ResidualNet, loss_of, train_step
from tests.framework.scheduled import Spy, advance, make_short


def first_channels(group: GroupContext) -> Tensor:
    """Earlier channels are more important."""
    return -torch.arange(group.group.num_channels, dtype=torch.float64)


def later_channels(group: GroupContext) -> Tensor:
    return torch.arange(group.group.num_channels, dtype=torch.float64)


def halfway(progress: float, final: float) -> float:
    return 1 - progress * (1 - final)


def untouched_start(members, channels, generator) -> None:
    """Leaves a regrown channel as it was."""


#: A strategy of a user's for every setting.
OWN = {
    "criterion": first_channels,
    "regrow": later_channels,
    "allocation": lambda values, eligible, prices: by_value(values, eligible, prices),
    "schedule": halfway,
    "regrow_schedule": lambda progress, fraction: fraction,
    "regrow_init": untouched_start,
}


def test_scheduler_takes_functions_of_the_users_own_for_every_strategy() -> None:
    started: list[list[int]] = []
    own = {**OWN, "regrow_init": lambda members, channels, generator: started.append(channels.tolist())}
    model, optimizer, scheduler = make_short(**own)
    events = advance(model, optimizer, scheduler, 4)
    assert not any(event.probed for event in events)
    assert events[-1].density == 0.5
    assert 0 in model.norm1.group.active  # kept by the criterion
    assert 5 in model.norm1.group.active  # regrown by the promise
    assert started
    record = scheduler.plan.record()
    assert record["criterion"] == f"{__name__}.first_channels"
    assert all(isinstance(value, str | int | float | bool | None) for value in record.values())


def test_plan_refuses_what_is_neither_a_name_nor_callable() -> None:
    for setting in ("criterion", "regrow", "allocation", "schedule", "regrow_schedule", "regrow_init"):
        with pytest.raises(TypeError, match=f"{setting}: expected a name or a callable, got int"):
            Plan(**{**SETTINGS, setting: 3})


def test_a_criterion_that_cannot_observe_is_refused_when_the_scheduler_is_made() -> None:
    class Blind(Criterion):
        observes = "spikes"

        def __call__(self, group: GroupContext) -> Tensor:
            return first_channels(group)

    with pytest.raises(TypeError, match=r"criterion: .*Blind' observes spikes, and has no method observe"):
        make_short(criterion=Blind())
    with pytest.raises(ValueError, match=r"criterion: 'spy' expected to observe 'spikes', .* 'norms' or None, not 'x'"):
        make_short(criterion=Spy("x"))


@pytest.mark.parametrize("returned", [None, 1.0, torch.zeros(2), torch.zeros(6, 1)])
def test_a_criterion_that_returns_something_else_is_told_so(returned: Any) -> None:
    model, optimizer, scheduler = make_short(criterion=lambda group: returned, regrow_fraction=0)
    train_step(model, optimizer)
    before = model.norm1.group.active.clone()
    with pytest.raises(ValueError, match=r"criterion .*: expected a tensor \[6\] for group 'first', got"):
        scheduler.step()
    assert torch.equal(model.norm1.group.active, before)


#: setting -> the group of entry points that is documented for it
ENTRY_POINTS = {
    "schedule": "sca.schedules",
    "criterion": "sca.criteria",
    "allocation": "sca.allocations",
    "regrow": "sca.regrowth",
    "regrow_schedule": "sca.regrow_schedules",
    "regrow_init": "sca.regrow_inits",
}


@pytest.fixture
def extension(monkeypatch):
    """An installed package with a strategy for every setting, and criteria whose import fails."""
    module = types.ModuleType("theirs")
    for setting, strategy in OWN.items():
        setattr(module, setting, strategy)
    monkeypatch.setitem(sys.modules, "theirs", module)
    points = [
        importlib.metadata.EntryPoint("theirs", f"theirs:{setting}", group) for setting, group in ENTRY_POINTS.items()
    ]
    points.append(importlib.metadata.EntryPoint("broken", "theirs:absent", "sca.criteria"))
    monkeypatch.setattr("sca.registry.entry_points", lambda group: [p for p in points if p.group == group])


def test_every_strategy_has_a_group_of_entry_points() -> None:
    assert EXTENSIONS == ENTRY_POINTS


@pytest.mark.parametrize("setting", ENTRY_POINTS)
def test_strategy_of_an_entry_point_is_found_by_name(setting: str, extension) -> None:
    named, given = make_short(**{setting: "theirs"}), make_short(**{setting: OWN[setting]})
    events, expected = advance(*named, steps=4), advance(*given, steps=4)
    assert [event.record() for event in events] == [event.record() for event in expected]
    assert events[-1].density == 0.5
    assert named[2].plan.record()[setting] == "theirs"


def test_entry_point_that_fails_or_is_unknown_says_so(extension) -> None:
    with pytest.raises(ValueError, match=r"criterion: 'broken' \(theirs:absent\) can't be loaded"):
        make_short(criterion="broken")
    with pytest.raises(ValueError, match=r"criterion: expected one of .*weight_l1.*theirs.*did you mean theirs"):
        make_short(criterion="their")


@pytest.mark.parametrize("net", [ConvNet, ResidualNet, DepthwiseNet, ConcatNet])
@pytest.mark.parametrize("name", [name for name in CRITERIA if isinstance(CRITERIA[name], Criterion)])
def test_every_criterion_that_observes_prunes_every_network(net, name: str) -> None:
    events = advance(*make_short(net, criterion=name), steps=4)
    assert events[-1].density <= 0.6


@pytest.mark.parametrize("observes", ["spikes", "gradients"])
def test_only_the_steps_before_an_update_are_observed(observes: str) -> None:
    spy = Spy(observes, steps=2)
    model, optimizer, scheduler = make_short(criterion=spy, start=4, stop=8, interval=4)
    seen = []
    for _ in range(10):
        train_step(model, optimizer)
        seen.append(len(spy.seen))
        spy.seen.clear()
        scheduler.step()
    assert seen == [0, 0, 2, 2, 0, 0, 2, 2, 0, 0]  # two neuron layers
    assert not any(module._forward_hooks for name, module in model.named_modules() if name)


def test_observed_gradients_are_those_of_the_spikes() -> None:
    spy = Spy("gradients")
    model, optimizer, _ = make_short(criterion=spy)
    kept = []

    def keep(module, inputs, spikes) -> None:
        spikes.retain_grad()
        kept.append(spikes)

    model.norm1.register_forward_hook(keep)
    train_step(model, optimizer)
    first = next(seen for seen in spy.seen if seen.spikes.shape == kept[0].shape)
    assert torch.equal(first.gradient, kept[0].grad)
    assert torch.equal(first.spikes, kept[0])
    assert not first.spikes.requires_grad
    kept.clear()  # which the model's hook holds, and which, by its own hook, holds the model


def test_observed_passes_are_those_of_training_alone() -> None:
    spy = Spy()
    model, _, scheduler = make_short(criterion=spy)
    with torch.no_grad():
        loss_of(model.eval())
    model.train()
    scheduler.probe(lambda: loss_of(model))
    assert not spy.seen
    with torch.inference_mode():
        loss_of(model)
    assert len(spy.seen) == 2


def test_observed_sums_of_several_passes_add_up_and_survive_a_resumption() -> None:
    spy = Spy(steps=2)
    model, optimizer, scheduler = make_short(criterion=spy, start=2, stop=4, interval=2)
    loss_of(model)  # as a part of a batch, whose gradients are added up
    train_step(model, optimizer)
    scheduler.step()
    state = scheduler.state_dict()
    counts = [spy.observe(seen)["count"] for seen in spy.seen.copy()]
    assert len(counts) == 4  # passes by layers
    assert state["observed"].keys() == {"count@first", "count@second"}
    assert torch.equal(state["observed"]["count@first"], counts[0] + counts[2])
    assert torch.equal(state["observed"]["count@second"], counts[1] + counts[3])
    other, other_optimizer, resumed = make_short(criterion=Spy(steps=2), start=2, stop=4, interval=2)
    other.load_state_dict(model.state_dict())
    other_optimizer.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(state)
    for one, its_optimizer, its_scheduler in ((model, optimizer, scheduler), (other, other_optimizer, resumed)):
        train_step(one, its_optimizer)
        its_scheduler.step()
    assert scheduler.history == resumed.history


def test_copies_of_model_optimizer_and_scheduler_observe_for_themselves() -> None:
    whole = make_short(criterion=Spy())  # the first update comes next, so that hooks are on the model
    model, optimizer, scheduler = copy.deepcopy(whole)
    train_step(model, optimizer)
    scheduler.step()
    assert scheduler.plan.criterion.seen
    assert not whole[2].plan.criterion.seen
    train_step(*whole[:2])
    whole[2].step()
    assert whole[2].history == scheduler.history


def test_observed_passes_leave_nothing_alive() -> None:
    model, _, _ = make_short(criterion="taylor")
    spikes = []
    model.norm1.register_forward_hook(lambda module, inputs, output: spikes.append(weakref.ref(output)))
    loss_of(model).backward()
    loss_of(model)  # and one without its backward pass
    gc.collect()
    assert len(spikes) == 2
    assert not any(ref() is not None for ref in spikes)


def test_taylor_norm_is_the_squared_change_that_the_norms_gradients_tell() -> None:
    model, optimizer, scheduler = make_short(criterion="taylor_norm", regrow_fraction=0)
    loss_of(model)  # a pass without its backward pass is none
    loss_of(model).backward()
    norm = model.norm1
    change = norm.weight * norm.weight.grad + norm.bias * norm.bias.grad
    expected = change.detach().double().square()
    optimizer.step()
    event = scheduler.step()
    torch.testing.assert_close(event.groups["first"].all_scores, expected)
    assert not norm.weight._backward_hooks
    assert not norm.bias._backward_hooks


def test_taylor_norm_sees_the_active_channels_of_each_backward_pass() -> None:
    model, optimizer, scheduler = make_short(criterion="taylor_norm", regrow_fraction=0)
    group = scheduler.groups["first"].group
    group.set_active(range(1, group.num_channels, 2))
    expected = 0
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(model).backward()
        change = model.norm1.weight * model.norm1.weight.grad + model.norm1.bias * model.norm1.bias.grad
        expected = expected + change.detach().double().square()
    optimizer.step()
    event = scheduler.step()
    scores = event.groups["first"].all_scores
    torch.testing.assert_close(scores[group.mask()], expected[group.mask()])


@pytest.mark.parametrize("start", [1, 100])
def test_taylor_norm_refuses_norms_that_are_not_trained_before_anything_changes(start: int) -> None:
    model = ConvNet()
    model.norm1.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    plan = {"start": start, "stop": 200, "interval": 10, "criterion": "taylor_norm"}
    with pytest.raises(ValueError, match="criterion: 'taylor_norm' observes batch norms, expected ones whose weights"):
        SCAScheduler(model, optimizer, **plan)
    assert model.norm1.activity is None
    model.norm1.requires_grad_(True)
    optimizer.add_param_group({"params": model.norm1.parameters()})
    SCAScheduler(model, optimizer, **plan)


def test_taylor_norm_takes_a_beta_that_is_not_trained_as_one_without_gradient() -> None:
    model, optimizer, scheduler = make_short(criterion="taylor_norm", regrow_fraction=0)
    model.norm1.bias.requires_grad_(False)
    loss_of(model).backward()
    expected = (model.norm1.weight * model.norm1.weight.grad).detach().double().square()
    optimizer.step()
    torch.testing.assert_close(scheduler.step().groups["first"].all_scores, expected)


def test_criterion_that_saw_no_pass_says_what_is_missing() -> None:
    model, optimizer, scheduler = make_short(criterion=Spy("gradients"))
    optimizer.step()
    with torch.no_grad():
        loss_of(model)
    with pytest.raises(RuntimeError, match="group 'first': no pass was observed, which criterion 'spy' asks for"):
        scheduler.step()


def test_unclipped_score_equals_the_clipped_one_where_nothing_exceeds_the_threshold() -> None:
    model, optimizer, scheduler = make_short(
        lambda: ConvNet(v_threshold=1e6), criterion="sca_unclipped", regrow_fraction=0
    )
    train_step(model, optimizer)
    activity = model.norm1.activity
    clipped = (activity.spike_count + activity.membrane_l1) / activity.positions
    event = scheduler.step()
    torch.testing.assert_close(event.groups["first"].all_scores, clipped)


@pytest.mark.parametrize("arguments", [{}, {"v_reset": None}, {"v_reset": 0.25, "tau": 3.0}, {"decay_input": False}])
@pytest.mark.parametrize("training", [True, False])
def test_potentials_are_those_that_spikes_and_activity_come_from(arguments: dict[str, Any], training: bool) -> None:
    torch.manual_seed(0)
    module = snn.BatchNormLIF(5, group=snn.ChannelGroup(5, "g"), **arguments).train(training)
    module.group.set_active([0, 2, 3])
    module.activity = snn.Activity(training_only=False)
    x = torch.randn(4, 3, 3, 6, 6) * 1.5 + 0.3
    h = module.potentials(x)
    before = module.running_mean.clone()
    spikes = module(x)
    assert torch.equal((h >= 1.0).float(), spikes)
    reset = arguments.get("v_reset", 0.0)
    v = torch.where(h >= 1.0, h - 1.0 if reset is None else reset, h)
    expected = (v - (reset or 0.0)).abs().sum((0, 1, 3, 4))
    torch.testing.assert_close(module.activity.membrane_l1[[0, 2, 3]].float(), expected)
    module.running_mean.copy_(before)
    module.potentials(x)
    assert torch.equal(module.running_mean, before)
