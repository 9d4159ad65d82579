"""SCAScheduler: its state, in the caller's modes and under wrappers."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

import sca
from sca_kernels import nn as snn
from tests.framework.pruning_nets import ConcatNet, ConvNet, active, batch, loss_of, train_step
from tests.framework.scheduled import SETTINGS, advance, cut, make
from tests.framework.watched import assert_equal_state

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
    settings = {"target": "synops", "start": 2}
    torch.manual_seed(0)
    model, optimizer, scheduler = make(**settings)
    advance(model, optimizer, scheduler, 5)
    assert scheduler.density < 1
    channels = active(model)
    state, weights = scheduler.state_dict(), copy.deepcopy(model.state_dict())
    expected = advance(model, optimizer, scheduler, 4)

    inner = ConvNet()
    inner.load_state_dict(dict(weights))  # the tensors alone: the channels are to come from the scheduler's state
    wrapped = WRAPPERS[wrapper](inner)
    twin_optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    twin = sca.SCAScheduler(wrapped, twin_optimizer, **{**SETTINGS, **settings})
    twin.load_state_dict(state)
    assert active(inner) == channels
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
