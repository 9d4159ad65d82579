"""The scheduler beside what training loops do: averages, skipped and accumulated steps, compilers, other plans."""

from __future__ import annotations

import copy
import logging
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sca
from sca.structure.groups import channel_axes, find_groups
from sca.structure.wrappers import unwrapped
from tests.framework.pruning_nets import (
    SETTINGS,
    ConcatNet,
    ConvNet,
    DepthwiseNet,
    ResidualNet,
    active,
    batch,
    loss_of,
    stripped,
    train_step,
)
from tests.framework.scheduled import advance, make, make_short


def ema(model: nn.Module, decay: float = 0.5) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


# --- averages of the weights ----------------------------------------------------------------


@pytest.mark.parametrize("net", [ConvNet, ResidualNet, DepthwiseNet, ConcatNet])
def test_average_made_before_pruning_follows_the_structure(net) -> None:
    model, optimizer, scheduler = make_short(net)
    average = ema(model)
    scheduler.follow(average)
    for _ in range(4):
        train_step(model, optimizer)
        average.update_parameters(model)
        if scheduler.wants_probe:
            scheduler.probe(lambda: loss_of(model))
        scheduler.step()
        assert active(average.module) == active(model)
    assert scheduler.density == 0.5
    x, _ = batch()
    torch.testing.assert_close(sca.compact(average.module.eval())(x), average.eval()(x), atol=1e-6, rtol=0)


COPIES = {
    "average": ema,
    "compiled": lambda model: torch.compile(copy.deepcopy(model), backend="eager"),
    "compiled_average": lambda model: torch.compile(ema(model), backend="eager"),
    "average_of_compiled": lambda model: ema(torch.compile(model, backend="eager")),
    "data_parallel": lambda model: nn.DataParallel(copy.deepcopy(model)),
}


@pytest.mark.parametrize("kind", COPIES)
def test_average_made_before_the_scheduler_found_groups_follows(kind: str) -> None:
    torch.manual_seed(0)
    model = stripped(ConvNet())
    average = COPIES[kind](model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scheduler = sca.SCAScheduler(model, optimizer, example_input=batch()[0], **{**SETTINGS, "regrow": "random"})
    scheduler.follow(average)
    events = advance(model, optimizer, scheduler, 4)
    assert scheduler.density < 1
    assert sum(event.regrown for event in events)
    inner = unwrapped(average)
    assert active(unwrapped(inner.module) if isinstance(inner, AveragedModel) else inner) == active(model)


def test_average_of_a_regrown_channel_begins_anew() -> None:
    model, optimizer, scheduler = make_short(regrow_init="reinit", regrow="random")
    average = ema(model, decay=0.9)
    scheduler.follow(average)
    came = False
    for _ in range(4):
        train_step(model, optimizer)
        average.update_parameters(model)
        event = scheduler.step()
        for name, change in event.groups.items():
            theirs = dict(average.module.named_modules())
            for module_name, module in model.named_modules():
                for key, axes in channel_axes(module).items():
                    for axis in axes:
                        entries = axis.of(scheduler.groups[name].group, change.regrown)
                        came |= bool(entries.numel())
                        mine, its = (
                            getattr(m, key).index_select(axis.dim, entries) for m in (module, theirs[module_name])
                        )
                        assert torch.equal(mine, its), (module_name, key)
    assert came


def test_follow_brings_a_late_average_up_to_date_and_refuses_another_architecture() -> None:
    model, optimizer, scheduler = make_short(regrow_fraction=0)
    late = copy.deepcopy(model)
    for _ in range(3):
        train_step(model, optimizer)
        scheduler.step()
    scheduler.follow(late)
    assert active(late) == active(model)
    other = ConvNet(first=7)
    with pytest.raises(ValueError, match="structure: group 'first': expected 7 channels, as in the model, got 6"):
        scheduler.follow(other)
    assert all(members.group.all_active for members in find_groups(other).values())
    for same in model, torch.compile(model, backend="eager"), nn.DataParallel(model):
        with pytest.raises(ValueError, match="model: expected another one than that of the scheduler"):
            scheduler.follow(same)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module"):
        scheduler.follow("model")


def test_follower_takes_the_structure_of_a_loaded_state() -> None:
    model, optimizer, scheduler = make_short(regrow_fraction=0)
    for _ in range(2):
        train_step(model, optimizer)
        scheduler.step()
    fresh, _, resumed = make_short(regrow_fraction=0)
    average = ema(fresh)
    resumed.follow(average)
    resumed.load_state_dict(scheduler.state_dict())
    assert active(average.module) == active(fresh) == active(model)


# --- optimizer steps -----------------------------------------------------------------------


def test_step_that_a_grad_scaler_skipped_is_no_step() -> None:
    model, optimizer, scheduler = make_short(start=3, stop=3, interval=1, regrow_fraction=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    counted = []
    for number in range(5):
        optimizer.zero_grad()
        scaler.scale(loss_of(model)).backward()
        if number in (0, 2):
            model.conv1.weight.grad[0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        event = scheduler.step()
        counted.append((scheduler.steps, event is not None))
    assert counted == [(0, False), (1, False), (1, False), (2, False), (3, True)]


def test_fused_step_that_a_grad_scaler_has_do_nothing_is_no_step() -> None:
    """A scaler hands a fused optimizer what it found, and the kernel does nothing."""
    torch.manual_seed(0)
    model = ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, fused=True)
    scheduler = sca.SCAScheduler(model, optimizer, **SETTINGS)
    for found, steps in ((1.0, 0), (0.0, 1)):
        optimizer.found_inf = torch.tensor(found)
        before = model.linear.weight.clone()
        train_step(model, optimizer)
        del optimizer.found_inf
        scheduler.step()
        assert scheduler.steps == steps
        assert torch.equal(model.linear.weight, before) == (not steps)


def test_gradients_that_are_added_up_make_one_step() -> None:
    model, optimizer, scheduler = make_short(start=2, stop=4, interval=2, regrow_fraction=0)
    for number in range(1, 9):
        loss_of(model).backward()
        if number % 2 == 0:
            optimizer.step()
            optimizer.zero_grad()
        scheduler.step()
        assert scheduler.steps == number // 2
    assert [event["step"] for event in scheduler.history] == [2, 4]


def test_a_scheduler_that_no_step_comes_to_says_so(caplog, monkeypatch) -> None:
    monkeypatch.setattr("sca.pruning.scheduler._SUSPICIOUS", 3)
    _, _, scheduler = make_short()
    for _ in range(5):
        scheduler.step()
    assert caplog.text.count("was called 3 times without a step of its optimizers") == 1


def test_closures_and_parameter_groups_added_later() -> None:
    model, optimizer, scheduler = make_short(regrow_fraction=0)
    head = nn.Linear(4, 4)
    optimizer.add_param_group({"params": head.parameters(), "lr": 0.01})
    before = head.weight.clone()

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = head(model(batch()[0])).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        assert optimizer.step(closure).requires_grad
        scheduler.step()
    assert scheduler.density < 1
    assert not torch.equal(head.weight, before)
    dormant = model.conv1.weight[model.norm1.group.dormant].clone()
    optimizer.step(closure)
    assert torch.equal(model.conv1.weight[model.norm1.group.dormant], dormant)


def test_a_frozen_layer_that_an_optimizer_is_given_later_keeps_its_dormant_channels() -> None:
    torch.manual_seed(0)
    model = ConvNet()
    late = model.conv2.requires_grad_(False)
    rest = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(rest, lr=0.05, momentum=0.9, weight_decay=0.1)
    scheduler = sca.SCAScheduler(model, optimizer, **{**SETTINGS, "regrow_fraction": 0})
    advance(model, optimizer, scheduler, 4)
    optimizer.add_param_group({"params": late.requires_grad_(True).parameters(), "lr": 0.1})
    rows, columns = model.norm2.group, model.norm1.group
    assert rows.dormant.numel()
    assert columns.dormant.numel()
    before = copy.deepcopy(late)
    for _ in range(3):
        train_step(model, optimizer)
        scheduler.step()
    for own, old in zip(late.parameters(), before.parameters(), strict=True):
        assert torch.equal(own[rows.dormant], old[rows.dormant])
        assert (own != old)[rows.active].flatten(1 if own.dim() > 1 else 0).any(-1).all()
    assert torch.equal(late.weight[:, columns.dormant], before.weight[:, columns.dormant])


# --- states and random numbers -----------------------------------------------------------------


def test_state_of_another_plan_is_refused_by_what_differs(caplog) -> None:
    model, optimizer, scheduler = make_short(regrow_fraction=0)
    advance(model, optimizer, scheduler, 2)
    assert scheduler.density < 1
    fresh, _, other = make_short(regrow_fraction=0, density=0.4, stop=6)
    with pytest.raises(ValueError, match=r"state: plan: it is of one with density 0\.5, not 0\.4, stop 4, not 6"):
        other.load_state_dict(scheduler.state_dict())
    assert other.steps == 0
    assert all(members.group.all_active for members in find_groups(fresh).values())
    with caplog.at_level(logging.INFO, "sca"):
        other.load_state_dict(scheduler.state_dict(), strict=False)
    assert "going on with another plan: the state is of one with density 0.5, not 0.4, stop 4, not 6" in caplog.text
    assert other.steps == 2
    assert active(fresh) == active(model)


def test_state_without_a_plan_is_taken_as_that_of_this_one() -> None:
    model, optimizer, scheduler = make_short(regrow_fraction=0)
    advance(model, optimizer, scheduler, 3)
    assert scheduler.density < 1
    state = scheduler.state_dict()
    del state["plan"], state["observed"]
    fresh, _, loaded = make_short(regrow_fraction=0)
    loaded.load_state_dict(state)
    assert loaded.steps == 3
    assert active(fresh) == active(model)


def test_probe_leaves_the_random_states_of_torch_numpy_and_python() -> None:
    model, optimizer, scheduler = make_short(start=2, stop=2, interval=1)
    train_step(model, optimizer)
    scheduler.step()

    def drawing() -> torch.Tensor:
        torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
        return loss_of(model)

    def drawn() -> tuple[float, float, float]:
        return torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002

    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
    expected = drawn()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)  # noqa: NPY002
    scheduler.probe(drawing)
    assert drawn() == expected


# --- compilers -----------------------------------------------------------------------------------


@pytest.fixture
def compiler():
    torch.compiler.reset()
    yield lambda model: torch.compile(model, backend="eager")
    torch.compiler.reset()


class Block(nn.Module):
    """A layer as one module, which torch.compile takes as one; a Sequential, compiled in place, it takes in parts."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, s: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(s))


def in_a_block() -> nn.Module:
    """A network whose second layer is a block."""
    torch.manual_seed(0)
    model = ConvNet()
    model.conv2, model.norm2 = Block(model.conv2, model.norm2), nn.Identity()
    return model


def whole(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def whole_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def block(model: nn.Module) -> nn.Module:
    model.conv2 = whole(model.conv2)
    return model


def block_in_place(model: nn.Module) -> nn.Module:
    whole_in_place(model.conv2)
    return model


@pytest.mark.parametrize(
    "settings",
    [{"target": "synops"}, {"criterion": "redundancy"}, {"criterion": "taylor"}, {"criterion": "taylor_norm"}],
)
@pytest.mark.parametrize("compiled", [whole, whole_in_place, block, block_in_place])
def test_hooks_work_after_compilation(settings, compiled, compiler) -> None:
    """Compiled code has run, with the scheduler on the network too, long before single layers are looked at."""

    def trained(network: nn.Module) -> tuple[list[dict[str, Any]], dict[str, list[int]]]:
        loss_of(network)
        parts = make(network, **{**settings, "start": 6, "stop": 10, "interval": 4, "regrow": "random", "density": 0.6})
        return [event.record() for event in advance(*parts, 10)], active(unwrapped(network))

    history, channels = trained(in_a_block())
    assert trained(compiled(in_a_block())) == (history, channels)
    assert [event["step"] for event in history] == [6, 10]
    assert history[-1]["density"] < 1


def test_compiled_code_runs_again_after_the_observed_step(compiler) -> None:
    counter = []

    def backend(graph, inputs):
        def run(*arguments):
            counter.append(1)
            return graph(*arguments)

        return run

    torch.manual_seed(0)
    model = torch.compile(ConvNet(), backend=backend)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    settings = {**SETTINGS, "start": 3, "stop": 3, "criterion": "redundancy", "regrow_fraction": 0}
    scheduler = sca.SCAScheduler(model, optimizer, **settings)
    ran = []
    for _ in range(5):
        train_step(model, optimizer)
        ran.append(bool(counter))
        counter.clear()
        scheduler.step()
    assert ran == [True, True, False, True, True]


def test_observation_touches_no_other_compiled_model(compiler) -> None:
    ran = []
    beside = torch.compile(nn.Linear(2, 2), backend=lambda graph, inputs: lambda *a: ran.append(1) or graph(*a))
    model, optimizer, scheduler = make(compiler(ConvNet()), target="synops", start=2, stop=2)
    for _ in range(3):
        beside(torch.rand(1, 2))
        train_step(model, optimizer)
        beside(torch.rand(1, 2))
        scheduler.step()
    assert scheduler.history
    assert len(ran) == 6


def test_observed_step_that_fails_leaves_the_compiler_as_it_was(compiler) -> None:
    torch.manual_seed(0)
    network = compiler(ConvNet())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    sca.SCAScheduler(network, optimizer, **{**SETTINGS, "target": "synops"})
    with pytest.raises(ValueError, match="x: expected"):
        network(torch.rand(2, 3, 6, 6))
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_compact_and_costs_look_into_compiled_models(compiler) -> None:
    model, optimizer, scheduler = make_short(regrow_fraction=0)
    for _ in range(2):
        train_step(model, optimizer)
        scheduler.step()
    network = compiler(model.eval())
    x, labels = batch()
    small = sca.compact(network)
    torch.testing.assert_close(small(x), model(x), atol=1e-6, rtol=0)
    assert sca.report_cost(network, [(x, labels)]).connectivity == sca.report_cost(model, [(x, labels)]).connectivity


# --- processes -------------------------------------------------------------------------------------


def test_process_group_is_checked() -> None:
    with pytest.raises(TypeError, match=r"process_group: expected a torch\.distributed group or None, got str"):
        make_short(process_group="gloo")


# --- what an average is worth ----------------------------------------------------------------------


def test_average_of_a_network_that_is_pruned_while_it_learns_predicts_as_well_as_the_network() -> None:
    """Digits, a narrow vgg5 for a few epochs, pruned to 40 % from the first on; the average was made before."""
    torch.manual_seed(0)
    digits = sca.data.load("digits")
    model = sca.models.build("vgg5", width=0.25, in_channels=1, image_size=8, time_steps=2, num_classes=10)
    average = ema(model, decay=0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    settings = {"density": 0.4, "start": 10, "stop": 100, "interval": 10, "min_channels": 2}
    scheduler = sca.SCAScheduler(model, optimizer, **settings)
    scheduler.follow(average)
    for epoch in range(10):
        for images, labels in digits.train_batches(64, seed=0, epoch=epoch, augment=False):

            def loss(images=images, labels=labels) -> torch.Tensor:
                return nn.functional.cross_entropy(model(images).mean(0), labels)

            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            average.update_parameters(model)
            if scheduler.wants_probe:
                scheduler.probe(loss)
            scheduler.step()

    def accuracy(network: nn.Module) -> float:
        network.eval()
        with torch.inference_mode():
            hits = [(network(x).mean(0).argmax(1) == y).float().mean() for x, y in digits.test_batches(364)]
        return torch.stack(hits).mean().item()

    own, averaged = accuracy(model), accuracy(average)
    assert scheduler.density == pytest.approx(0.4, abs=0.01)
    assert own > 0.85
    assert averaged > own - 0.03
    assert accuracy(sca.compact(average.module)) == pytest.approx(averaged, abs=0.003)
