"""SCAScheduler: when and what it cuts, what it refuses (checklist, "Prune, regrow")."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import sca
from sca_kernels import nn as snn
from tests.framework.pruning_nets import ConvNet, active, batch
from tests.framework.scheduled import SETTINGS, advance, make

# --- schedule and selection


@pytest.mark.parametrize("schedule", ["constant", "cubic", "linear", "cosine"])
@pytest.mark.parametrize("regrow_fraction", [0.0, 0.5])
def test_scheduler_meets_the_schedule_exactly_at_every_update(schedule: str, regrow_fraction: float) -> None:
    model, optimizer, scheduler = make(schedule=schedule, regrow_fraction=regrow_fraction)
    events = advance(model, optimizer, scheduler, 14)
    assert [event.step for event in events] == [2, 4, 6, 8, 10, 12]
    for event in events:
        expected = int(14 * scheduler.plan.density_at(event.step) + 0.5)
        assert sum(change.after for change in event.groups.values()) == expected
        for change in event.groups.values():
            assert change.before - change.pruned.numel() + change.regrown.numel() == change.after
            assert change.after >= 2
    assert events[-1].density == pytest.approx(6 / 14)
    assert events[-1].regrown == 0


def test_scheduler_freezes_the_structure_after_stop() -> None:
    model, optimizer, scheduler = make()
    advance(model, optimizer, scheduler, 12)
    before = active(model)
    assert advance(model, optimizer, scheduler, 6) == []
    assert active(model) == before
    assert len(scheduler.history) == 6


def test_scheduler_cuts_exactly_the_count_asked_under_ties() -> None:
    """Channels that are copies of each other score alike; the lower indices stay."""
    model = ConvNet()
    with torch.no_grad():
        model.conv1.weight.copy_(model.conv1.weight[:1].expand_as(model.conv1.weight))
    model, optimizer, scheduler = make(
        model, start=1, stop=1, interval=1, density=0.5, allocation="layer", regrow_fraction=0.0
    )
    for p in model.parameters():
        p.requires_grad_(p is model.linear.weight)
    advance(model, optimizer, scheduler)
    assert active(model)["first"] == [0, 1, 2]
    assert len(active(model)["second"]) == 4


@pytest.mark.parametrize(("floor", "expected"), [(None, [6, 8]), (3, [3, 3]), (0, [1, 1])])
def test_scheduler_floors_hold_and_one_channel_always_stays(floor: int | None, expected: list[int]) -> None:
    model, optimizer, scheduler = make(density=0.01, min_channels=floor, regrow_fraction=0.0)
    event = advance(model, optimizer, scheduler, 12)[-1]
    assert [change.after for change in event.groups.values()] == expected


def test_scheduler_rounds_groups_to_a_multiple() -> None:
    model, optimizer, scheduler = make(ConvNet(12, 16), round_to=4)
    for event in advance(model, optimizer, scheduler, 12):
        assert all(change.after % 4 == 0 for change in event.groups.values())


def test_scheduler_rounds_to_whole_accesses_where_the_parameters_are_on_a_gpu(monkeypatch) -> None:
    """When an update is planned: a model may move in between."""
    model, optimizer, scheduler = make(ConvNet(24, 40), min_channels=1)
    first = advance(model, optimizer, scheduler, 6)
    monkeypatch.setattr(type(scheduler), "_device_type", "cuda")
    assert scheduler.least_share == 16 / 64
    last = advance(model, optimizer, scheduler, 6)
    assert any(change.after % 8 for event in first for change in event.groups.values())
    assert last
    assert all(change.after % 8 == 0 for event in last for change in event.groups.values())


@pytest.mark.parametrize(("held", "fits"), [(1, True), (None, True), (8, False)])
def test_scheduler_takes_no_multiple_for_the_one_that_it_comes_to(held: int | None, fits: bool) -> None:
    """States of earlier versions hold 1."""
    state = make()[2].state_dict()
    assert state["plan"]["round_to"] is None
    state["plan"]["round_to"] = held
    scheduler = make()[2]
    if fits:
        scheduler.load_state_dict(state)
    else:
        with pytest.raises(ValueError, match="plan: it is of one with round_to 8, not 1;"):
            scheduler.load_state_dict(state)


@pytest.mark.parametrize("target", ["parameters", "synops"])
def test_scheduler_reaches_a_target_share_without_exceeding_it(target: str) -> None:
    model, optimizer, scheduler = make(ConvNet(16, 24), target=target, density=0.3)
    events = advance(model, optimizer, scheduler, 12)
    assert all(event.share <= event.wanted + 1e-6 for event in events)
    assert events[0].share == 1
    assert events[-1].share > 0.2
    if target == "parameters":
        assert sca.report_cost(model, [batch()]).connectivity == pytest.approx(events[-1].share)


def test_scheduler_by_layer_gives_all_groups_the_same_density() -> None:
    model, optimizer, scheduler = make(ConvNet(12, 24), allocation="layer", density=0.5, regrow_fraction=0.5)
    for event in advance(model, optimizer, scheduler, 12):
        for change, channels in zip(event.groups.values(), (12, 24), strict=True):
            assert abs(change.after - channels * event.density) <= 1


def test_scheduler_by_synops_cuts_the_channels_that_cost_most() -> None:
    """The first group's map is four times the size of the second's, and every spike there is read by 24 channels."""
    kept = {}
    for allocation in "global", "synops":
        torch.manual_seed(0)
        model, optimizer, scheduler = make(ConvNet(16, 24), allocation=allocation, density=0.6, regrow_fraction=0.0)
        kept[allocation] = advance(model, optimizer, scheduler, 12)[-1].groups["first"].after
    assert kept["synops"] < kept["global"]


def test_scheduler_by_cost_gives_groups_the_same_sizes_whatever_the_criterion_and_whatever_was_cut_before() -> None:
    sizes = set()
    for criterion in "sca", "random":
        for schedule in "constant", "cubic":
            arguments = {"criterion": criterion, "schedule": schedule, "target": "parameters", "density": 0.3}
            model, optimizer, scheduler = make(ConvNet(16, 24), allocation="cost", min_channels=1, **arguments)
            event = advance(model, optimizer, scheduler, 12)[-1]
            sizes.add(tuple(change.after for change in event.groups.values()))
            assert event.share <= 0.3
    (first,) = sizes  # one for all of them
    assert first[0] / 16 < first[1] / 24  # a channel of the first group has more connections


def test_scheduler_refuses_an_allocation_with_prices_that_nobody_knows() -> None:
    def by_taste(values, eligible, prices):
        return values

    by_taste.prices = "taste"
    with pytest.raises(ValueError, match="allocation: expected prices 'synops' or 'connections', got 'taste'"):
        make(ConvNet(16, 24), allocation=by_taste)


@pytest.mark.parametrize("criterion", ["sca", "rate", "weight_l1", "bn_gamma", "random"])
def test_scheduler_gives_the_same_masks_for_the_same_seed(criterion: str) -> None:
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        model, optimizer, scheduler = make(criterion=criterion, seed=5, regrow="random")
        advance(model, optimizer, scheduler, 12)
        runs.append((active(model), scheduler.history))
    assert runs[0] == runs[1]


def test_scheduler_reports_a_dead_layer_and_never_empties_it(caplog: pytest.LogCaptureFixture) -> None:
    model = ConvNet()
    nn.init.constant_(model.norm2.bias, -50)
    model, optimizer, scheduler = make(model, min_channels=0, density=0.2, regrow_fraction=0.0)
    for norm in (model.norm1, model.norm2):
        norm.bias.requires_grad_(False)
    with caplog.at_level(logging.WARNING, "sca"):
        events = advance(model, optimizer, scheduler, 12)
    assert all(event.dead == ("norm2",) for event in events)
    assert scheduler.history[-1]["dead"] == ["norm2"]
    assert events[-1].groups["second"].after >= 1
    assert "norm2" in caplog.text


def test_scheduler_keeps_the_importance_of_channels_since_the_last_update_alone() -> None:
    model, optimizer, scheduler = make(density=1.0)
    advance(model, optimizer, scheduler, 3)
    assert model.norm1.activity.positions.tolist() == [3 * 5 * 36] * 6
    model.eval()
    model(batch()[0])
    advance(model.train(), optimizer, scheduler)
    assert model.norm1.activity.positions is None


# --- wrong use


def test_scheduler_refuses_a_model_without_prunable_groups_neurons_or_norms() -> None:
    with pytest.raises(ValueError, match="found no channels that can be pruned"):
        make(nn.Linear(2, 2))
    fixed = snn.ChannelGroup(4, "fixed", prunable=False)
    with pytest.raises(ValueError, match="only fixed"):
        make(nn.Sequential(snn.ChannelConv2d(1, 4, 1, out_group=fixed), snn.LIF(group=fixed)))
    group = snn.ChannelGroup(4, "bare")
    with pytest.raises(ValueError, match="no neuron carries group 'bare'"):
        make(snn.ChannelConv2d(1, 4, 1, out_group=group))
    normless = nn.Sequential(snn.ChannelConv2d(1, 4, 1, out_group=group), snn.LIF(group=group))
    with pytest.raises(ValueError, match="regrow: group 'bare' has no batch norm"):
        make(normless)
    make(normless, regrow_fraction=0.0)


def test_scheduler_refuses_an_optimizer_that_has_one_until_that_is_detached() -> None:
    model, optimizer, scheduler = make()
    with pytest.raises(ValueError, match="attached to it already"):
        sca.SCAScheduler(model, optimizer, **SETTINGS)
    scheduler.detach()
    assert model.norm1.activity is None
    sca.SCAScheduler(model, optimizer, **SETTINGS)
