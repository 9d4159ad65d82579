"""SCAScheduler (checklist, "Prune, regrow")."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import sca
from sca.structure.groups import find_groups
from sca_kernels import nn as snn
from tests.framework.pruning_nets import ConcatNet, ConvNet, batch, loss_of, train_step
from tests.framework.watched import assert_equal_state

SETTINGS = {"start": 2, "stop": 12, "interval": 2, "density": 0.4, "min_channels": 2}


def make(model: nn.Module | None = None, **settings: Any) -> tuple[nn.Module, torch.optim.Optimizer, sca.SCAScheduler]:
    model = model or ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    return model, optimizer, sca.SCAScheduler(model, optimizer, **{**SETTINGS, **settings})


def advance(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: sca.SCAScheduler, steps: int = 1) -> list:
    """Train; returns the events."""
    events = []
    for _ in range(steps):
        train_step(model, optimizer)
        if scheduler.wants_probe:
            scheduler.probe(lambda: loss_of(model))
        event = scheduler.step()
        if event is not None:
            events.append(event)
    return events


def active(model: nn.Module) -> dict[str, list[int]]:
    return {name: members.group.active.tolist() for name, members in find_groups(model).items()}


def everything(model: nn.Module, scheduler: sca.SCAScheduler) -> dict[str, Any]:
    """All that a probe must leave as it was."""
    return copy.deepcopy(
        {
            "state": model.state_dict(),
            "grad": {name: p.grad for name, p in model.named_parameters()},
            "activity": scheduler.state_dict()["activity"],
            "random": torch.get_rng_state(),
            "training": [m.training for m in model.modules()],
            "active": active(model),
        }
    )


def cut(model: ConvNet) -> ConvNet:
    """A fixed structure with dormant channels."""
    model.norm1.group.set_active([0, 2, 3])
    model.norm2.group.set_active([1, 4, 5, 7])
    return model


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


# --- state


def run(model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: sca.SCAScheduler, steps: int) -> dict[str, Any]:
    advance(model, optimizer, scheduler, steps)
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}


@pytest.mark.parametrize("at", [3, 6, 7])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"criterion": "random", "regrow": "random", "regrow_init": "reinit"},
        {"target": "synops", "allocation": "synops"},
    ],
    ids=["sca", "random", "synops"],
)
def test_state_dict_resumes_bit_exactly(at: int, settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    straight = run(*make(**settings), 11)
    torch.manual_seed(0)
    saved = io.BytesIO()
    torch.save(run(*make(**settings), at), saved)
    saved.seek(0)
    state = torch.load(saved, weights_only=True)
    torch.manual_seed(99)
    model, optimizer, scheduler = make(**settings)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    assert_equal_state(run(model, optimizer, scheduler, 11 - at), straight)


def test_state_dict_of_another_model_is_refused_by_group_and_changes_nothing() -> None:
    _, _, scheduler = make(ConvNet(6, 8))
    other, _, theirs = make(ConvNet(6, 10))
    other.norm1.group.set_active([1])
    with pytest.raises(ValueError, match=r"group 'second': expected 8 channels, as in the model, got 10"):
        scheduler.load_state_dict(theirs.state_dict())
    assert scheduler.density == 1
    state = scheduler.state_dict()
    state["channels"]["third"] = 4
    with pytest.raises(ValueError, match="group 'third'"):
        scheduler.load_state_dict(state)


def test_history_is_plain_data() -> None:
    import json

    model, optimizer, scheduler = make()
    advance(model, optimizer, scheduler, 12)
    assert json.loads(json.dumps(scheduler.history)) == scheduler.history
    assert scheduler.history[-1]["active"] == {name: len(indices) for name, indices in active(model).items()}


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


# --- fine-tuning


def frozen(model: nn.Module, how: str) -> nn.Module:
    """The first block of a ConvNet as people freeze them."""
    if how in ("parameters", "both"):
        model.conv1.requires_grad_(False)
        model.norm1.requires_grad_(False)
    if how in ("mode", "both"):
        model.norm1.eval()
        model.conv1.eval()
    return model


@pytest.mark.parametrize("target", ["channels", "synops"])
@pytest.mark.parametrize("how", ["parameters", "mode", "both"])
def test_scheduler_prunes_and_regrows_frozen_layers_like_others(
    how: str, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = frozen(ConvNet(), how)
    before = copy.deepcopy(model.conv1.state_dict())
    with caplog.at_level(logging.WARNING):
        model, optimizer, scheduler = make(model, regrow_fraction=0.9, allocation="layer", target=target)
    assert ("frozen, but pruned and regrown like all others: first;" in caplog.text) == (how != "mode")
    for _ in range(12):
        advance(model, optimizer, scheduler)
        recorded = model.norm1.activity.spike_count
        expected = None if recorded is None else recorded.clone()
        model.eval()
        model(batch()[0])  # a validation pass adds nothing
        frozen(model.train(), how)
        recorded = model.norm1.activity.spike_count
        assert recorded is expected is None or torch.equal(recorded, expected)
    assert scheduler.history[-1]["active"]["first"] < 6
    assert sum(event["groups"]["first"]["regrown"] for event in scheduler.history) > 0
    if how != "mode":
        assert torch.equal(model.conv1.weight, before["weight"])
        assert not model.norm1.weight.requires_grad


def test_probe_gives_frozen_layers_the_gradient_they_would_have() -> None:
    gradients = []
    for how in "none", "parameters":
        torch.manual_seed(0)
        model, _, scheduler = make(frozen(ConvNet(), how))
        cut(model)
        scheduler.probe(lambda model=model: loss_of(model))
        gradients.append(scheduler.state_dict()["gradients"])
        assert model.norm1.weight.requires_grad == (how == "none")
    assert_equal_state(*gradients)
    assert gradients[0]["norm1"].any()


def test_activity_of_a_copy_follows_the_modes_of_the_copy() -> None:
    model, _, scheduler = make(frozen(ConvNet(), "mode"))
    twin = copy.deepcopy(model)
    twin.eval()(batch()[0])
    assert twin.norm1.activity.spike_count is None
    frozen(twin.train(), "mode")(batch()[0])
    assert twin.norm1.activity.spike_count.any()
    assert model.norm1.activity.spike_count is None
    scheduler.detach()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not sca.compact(twin)._forward_pre_hooks


def test_compiled_models_record_frozen_layers_and_compile_nothing_when_the_scheduler_is_made() -> None:
    model = frozen(ConvNet(), "both")
    compiled = torch.compile(model, backend="eager")
    compiled(batch()[0])
    torch._dynamo.utils.counters.clear()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    scheduler = sca.SCAScheduler(model, optimizer, **{**SETTINGS, "start": 1, "regrow_fraction": 0.0})
    assert not torch._dynamo.utils.counters["stats"]
    loss_of(compiled).backward()
    optimizer.step()
    assert model.norm1.activity.spike_count.any()
    assert scheduler.step() is not None
    assert loss_of(compiled).isfinite()


class SidePath(nn.Module):
    """A layer with a low-rank path beside it."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Conv2d(base.in_channels, 2, 3, padding=1, bias=False)
        self.up = nn.Conv2d(2, base.out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x.flatten(0, -4))).unflatten(0, x.shape[:-3])


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("case", ["head", "side path", "channel layer"])
def test_scheduler_refuses_a_layer_without_the_group_that_it_reads(case: str, example: bool) -> None:
    model = sca.models.build("vgg5", num_classes=4, in_channels=2, time_steps=2, image_size=32, width=0.25)
    if case == "side path":
        convs = [name for name, m in model.named_modules() if isinstance(m, snn.ChannelConv2d)]
        model.set_submodule(convs[1], SidePath(model.get_submodule(convs[1])))
    else:
        name = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
        kind = nn.Linear if case == "head" else snn.ChannelLinear
        model.set_submodule(name, kind(model.get_submodule(name).in_features, 7))
    before = active(model)
    with pytest.raises(ValueError, match=r"fails without some channels of group '\w+': .* must carry their group"):
        make(model, example_input=torch.zeros(2, 2, 32, 32) if example else None)
    assert active(model) == before
    assert model(torch.zeros(2, 2, 32, 32)).shape[1] == 2


def test_scheduler_takes_a_new_head_that_carries_the_group_of_the_old_one() -> None:
    model = ConvNet()
    old = model.linear
    model.linear = snn.ChannelLinear(
        old.in_features, 7, in_group=old.in_group, features_per_channel=old.features_per_channel
    )
    model, optimizer, scheduler = make(model)
    advance(model, optimizer, scheduler, 4)
    assert scheduler.density < 1


def test_scheduler_tries_the_model_with_the_example_and_leaves_it_as_it_was() -> None:
    model = ConvNet()
    with pytest.raises(ValueError, match=r"example_input: the model fails with it at .*\.py:\d+"):
        make(model, example_input=torch.zeros(2, 2, 7, 9))
    before = copy.deepcopy(model.state_dict())
    cut(model)
    kept = active(model)
    make(model, example_input=(batch()[0],))
    assert active(model) == kept
    assert_equal_state(dict(model.state_dict()), dict(before))


REPARAMETRISED = {
    "weight norm": torch.nn.utils.parametrizations.weight_norm,
    "weight norm by hooks": torch.nn.utils.weight_norm,
    "spectral norm": torch.nn.utils.parametrizations.spectral_norm,
    "spectral norm by hooks": torch.nn.utils.spectral_norm,
    "orthogonal": torch.nn.utils.parametrizations.orthogonal,
    "unstructured pruning": lambda module: prune.l1_unstructured(module, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("how", REPARAMETRISED)
def test_layers_that_compute_their_weight_are_refused_by_name(how: str) -> None:
    model = ConvNet()
    REPARAMETRISED[how](model.conv2)
    message = r"conv2 \(\w*ChannelConv2d\) carries a channel group, but .*weight, computed in each pass by \w+\)"
    with pytest.raises(ValueError, match=message):
        make(model)
    with pytest.raises(ValueError, match=message):
        sca.compact(model)
    for module in model.modules():
        for role in "in_group", "out_group", "group":
            if getattr(module, role, None) is not None:
                setattr(module, role, None)
    with pytest.raises(ValueError, match=r"the parameters of conv2 are not its own \(weight, computed in each pass by"):
        sca.attach_groups(model, batch()[0])


def test_step_without_training_passes_says_what_is_missing() -> None:
    model, optimizer, scheduler = make(start=1)
    loss_of(model.eval()).backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="group 'first': no activity was recorded"):
        scheduler.step()


def test_step_refuses_scores_that_are_not_finite() -> None:
    model, optimizer, scheduler = make(criterion="bn_gamma", start=1)
    train_step(model, optimizer)
    nn.init.constant_(model.norm1.weight, torch.nan)
    with pytest.raises(RuntimeError, match="group 'first': scores are not finite"):
        scheduler.step()


@pytest.mark.parametrize("loss", [lambda: 1.0, lambda: torch.ones(2, requires_grad=True), lambda: torch.ones(())])
def test_probe_refuses_a_loss_without_gradient(loss) -> None:
    _, _, scheduler = make()
    with pytest.raises(ValueError, match="loss_fn: expected a scalar tensor with a gradient"):
        scheduler.probe(loss)


# --- modes of the caller, wrappers of the model


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, lambda: torch.device("meta")])
@pytest.mark.parametrize("settings", [{}, {"target": "synops", "regrow": "random", "regrow_init": "reinit"}])
def test_update_in_any_mode_of_the_caller_is_the_same(mode: Any, settings: dict[str, Any]) -> None:
    runs = []
    for context in contextlib.nullcontext, mode:
        torch.manual_seed(0)
        model, optimizer, scheduler = make(min_channels=2, **settings)
        for _ in range(9):
            train_step(model, optimizer)
            if scheduler.wants_probe:
                scheduler.probe(lambda model=model: loss_of(model))
            with context():
                scheduler.step()
                scheduler.load_state_dict(copy.deepcopy(scheduler.state_dict()))
                assert 0 < scheduler.density <= 1
        runs.append({"model": model.state_dict(), "scheduler": scheduler.state_dict()})
    assert_equal_state(*runs)


def test_passes_in_inference_mode_between_updates_change_nothing() -> None:
    runs = []
    for between in False, True:
        torch.manual_seed(0)
        model, optimizer, scheduler = make(ConcatNet())
        for _ in range(7):
            advance(model, optimizer, scheduler)
            if between:
                with torch.inference_mode():
                    model.eval()
                    loss_of(model)
                    model.train()
        runs.append(model.state_dict())
    assert_equal_state(*runs)


def test_probe_works_under_inference_mode() -> None:
    model, _, scheduler = make(cut(ConvNet()))
    with torch.inference_mode():
        with torch.inference_mode(False):
            batch()
        scheduler.probe(lambda: loss_of(model))
    assert scheduler.state_dict()["gradients"]["norm1"].any()


def part_compiled(model: nn.Module) -> nn.Module:
    model.conv2 = torch.compile(model.conv2, backend="eager")
    model.norm2 = torch.compile(model.norm2, backend="eager")
    return model


WRAPPERS = {
    "plain": lambda model: model,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "part_compiled": part_compiled,
    "data_parallel": nn.DataParallel,
    "both": lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_scheduler_of_a_wrapped_model_goes_on_from_the_state_of_another_wrapping(wrapper: str) -> None:
    settings = {"target": "synops", "start": 4}
    torch.manual_seed(0)
    model, optimizer, scheduler = make(**settings)
    advance(model, optimizer, scheduler, 3)
    state, weights = scheduler.state_dict(), copy.deepcopy(model.state_dict())
    expected = advance(model, optimizer, scheduler, 4)

    inner = ConvNet()
    inner.load_state_dict(weights)
    wrapped = WRAPPERS[wrapper](inner)
    twin_optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    twin = sca.SCAScheduler(wrapped, twin_optimizer, **{**SETTINGS, **settings})
    twin.load_state_dict(state)
    again = twin.state_dict()
    assert_equal_state(
        {k: again[k] for k in ("active", "activity", "gradients")},
        {k: state[k] for k in ("active", "activity", "gradients")},
    )
    assert again["activity"].keys() == {"norm1", "norm2"}
    events = advance(wrapped, twin_optimizer, twin, 4)
    assert [event.step for event in events] == [event.step for event in expected]
    assert events[0].dead == expected[0].dead


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_state_that_was_saved_under_the_names_of_a_wrapper_is_understood(prefix: str) -> None:
    model, optimizer, scheduler = make(start=4)
    advance(model, optimizer, scheduler, 2)
    state = scheduler.state_dict()
    renamed = {**state, "activity": {f"{prefix}{name}": sums for name, sums in state["activity"].items()}}
    _, _, twin = make(start=4)
    twin.load_state_dict(renamed)
    assert_equal_state(twin.state_dict(), state)


@pytest.mark.parametrize("part", ["activity", "gradients"])
def test_state_of_modules_that_the_model_lacks_is_refused_by_name_and_changes_nothing(part: str) -> None:
    model, optimizer, scheduler = make(start=4)
    advance(model, optimizer, scheduler, 2)
    state = scheduler.state_dict()
    state[part] = {"norm7": torch.ones(3)}
    _, _, twin = make(start=4)
    with pytest.raises(ValueError, match=f"state: {part}: expected modules of the model, got norm7"):
        twin.load_state_dict(state)
    assert twin.steps == 0


def test_stateful_model_trains_on_through_an_update() -> None:
    model, optimizer, scheduler = make(ConvNet(stateful=True), regrow_fraction=0.5)
    for _ in range(9):
        snn.detach(model)
        advance(model, optimizer, scheduler)
    assert model.norm1.v.shape[1] == model.norm1.group.num_active
    small = sca.compact(model)
    snn.reset(small)
    small(batch()[0])
