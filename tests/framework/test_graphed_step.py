"""A training step as one graph: the same training as without, few captures, nothing that waits. On the CPU a stand-in
records and repeats operators (:mod:`tests.framework.recorded`); what is not captured has tests of its own."""

from __future__ import annotations

import copy
import functools
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sca
from sca.structure.groups import find_groups
from sca.training import GraphedStep, graph
from sca_kernels import functional as F
from tests.framework.graphed import OPTIMIZERS, RATE, Reading, Run, batches, loss_fn, train
from tests.framework.pruning_nets import ConvNet, batch
from tests.framework.recorded import Waits, nobody_waits
from tests.framework.watched import assert_equal_state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_captured_steps_train_as_eager_ones_bit_for_bit(recorder, name: str) -> None:
    ours, theirs = Run(OPTIMIZERS[name]), Run(OPTIMIZERS[name])
    step = ours.step_of()
    train(ours, step, batches(24))
    for x, labels in batches(24):
        theirs.eager(x, labels)
    assert_equal_state(ours.state(), theirs.state())
    assert (step.captures, step.replays, recorder.asides, recorder.graphs) == (1, 21, 3, 1)


@pytest.mark.parametrize("name", ["momentum", "adamw"])
@pytest.mark.parametrize("regrow", ["bn_gamma", "random"])
def test_pruning_captures_anew_and_trains_alike(recorder, name: str, regrow: str) -> None:
    plan = {"start": 6, "stop": 24, "regrow_fraction": 0.5, "regrow": regrow}
    ours, theirs = Run(OPTIMIZERS[name], **plan), Run(OPTIMIZERS[name], **plan)
    step = ours.step_of()
    train(ours, step, batches(30))
    for x, labels in batches(30):
        theirs.eager(x, labels)
    assert_equal_state(ours.state(), theirs.state())
    assert len(ours.scheduler.history) == 4
    assert ours.scheduler.density == 0.5
    assert (step.captures, step.replays) == (5, 15)  # of six steps between two updates, three warm up
    assert len(recorder.alive) == 1


def test_update_that_cuts_nothing_still_has_new_sums_to_be_captured(recorder) -> None:
    plan = {"start": 6, "stop": 12, "density": 1.0, "regrow_fraction": 0.0}
    ours, theirs = Run(**plan), Run(**plan)
    train(ours, ours.step_of(), batches(17))
    for x, labels in batches(17):
        theirs.eager(x, labels)
    assert_equal_state(ours.state(), theirs.state())
    assert recorder.graphs == 3


@pytest.mark.parametrize(
    ("criterion", "target", "observed"),
    [("sca", "synops", 1), ("redundancy", "channels", 1), ("taylor", "channels", 4), ("taylor", "synops", 4)],
)
def test_steps_that_pruning_observes_run_as_they_stand(recorder, criterion: str, target: str, observed: int) -> None:
    """Those before an update whose criterion looks at passes, or whose budget counts layers' inputs."""
    plan = {"start": 8, "stop": 16, "interval": 8, "criterion": criterion, "target": target}
    ours, theirs = Run(**plan), Run(**plan)
    step = ours.step_of()
    train(ours, step, batches(20))
    for x, labels in batches(20):
        theirs.eager(x, labels)
    assert_equal_state(ours.state(), theirs.state())
    assert (step.captures, step.replays) == (3, 2 * (8 - 3 - observed) + 1)  # of eight steps three warm up


def test_odd_batch_runs_as_it_stands_and_keeps_the_graph(recorder) -> None:
    odd = (5, 9, 13, 17, 21)  # more than would warm up, in a row
    ours, theirs = Run(start=100, stop=200), Run(start=100, stop=200)
    step = ours.step_of()
    train(ours, step, batches(22, odd=odd))
    for x, labels in batches(22, odd=odd):
        theirs.eager(x, labels)
    assert_equal_state(ours.state(), theirs.state())
    assert (step.captures, step.replays) == (1, 22 - 3 - len(odd))


def test_shape_that_goes_on_takes_the_place_of_the_one_before(recorder) -> None:
    run = Run()
    step = run.step_of(warmup=2)
    train(run, step, batches(6, odd=()))
    train(run, step, batches(6, size=7))
    assert (step.captures, step.replays, len(recorder.alive)) == (2, 8, 1)


def test_learning_rates_change_without_a_capture(recorder) -> None:
    rates = [RATE / 2**k for k in (0, 1, 1, 2, 3, 4, 4, 5, 3, 2, 1, 0)]
    ours, theirs = Run(), Run()
    step = ours.step_of()
    for run, one in (ours, None), (theirs, theirs.eager):
        for rate, (x, labels) in zip(rates, batches(12), strict=True):
            run.optimizer.param_groups[0]["lr"] = rate
            train(run, step, [(x, labels)]) if one is None else one(x, labels)
    assert_equal_state(ours.state(), theirs.state())
    assert step.captures == 1
    assert ours.optimizer.param_groups[0]["lr"] == rates[-1]  # a number, as it was set


def test_schedule_of_torch_works_without_a_warning(recorder, recwarn) -> None:
    ours, theirs = Run(), Run()
    step = ours.step_of()
    for run in ours, theirs:
        schedule = torch.optim.lr_scheduler.StepLR(run.optimizer, step_size=4, gamma=0.5)
        for x, labels in batches(14):
            train(run, step, [(x, labels)]) if run is ours else run.eager(x, labels)
            schedule.step()
    assert_equal_state(ours.state(), theirs.state())
    assert step.captures == 1
    assert not recwarn.list


@pytest.mark.parametrize("sizes", [6, 5])
def test_accumulation_equals_that_of_parts(recorder, sizes: int) -> None:
    ours, theirs = Run(), Run()
    step = ours.step_of(accumulate=3)
    train(ours, step, batches(10, size=sizes))
    for x, labels in batches(10, size=sizes):
        theirs.eager(x, labels, parts=3)
    assert_equal_state(ours.state(), theirs.state())
    assert step.captures == 1


def test_average_follows_captured_steps(recorder) -> None:
    averages = []
    ours, theirs = Run(start=6, stop=12), Run(start=6, stop=12)
    step = ours.step_of()
    for run in ours, theirs:
        average = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        run.scheduler.follow(average)
        for x, labels in batches(16):
            train(run, step, [(x, labels)]) if run is ours else run.eager(x, labels)
            average.update_parameters(run.model)
        averages.append(average.state_dict())
    assert_equal_state(*averages)
    assert step.captures == 3


def test_frozen_layers_and_clipping_are_captured(recorder) -> None:
    def frozen() -> nn.Module:
        net = ConvNet()
        net.conv1.requires_grad_(False)
        return net

    states = []
    for captured in True, False:
        run = Run(net=frozen, start=6, stop=12)
        clip = functools.partial(nn.utils.clip_grad_norm_, list(run.model.parameters()), 0.1)
        step = run.step_of(on_backward=clip, graph=captured)
        train(run, step, batches(16))
        states.append(run.state())
        assert step.captures == (3 if captured else 0)
    assert_equal_state(*states)


CHANGES = {
    "structure": lambda run, step: run.model.norm1.group.set_active([0, 1, 2]),
    "mode": lambda run, step: run.model.norm1.eval(),
    "requires_grad": lambda run, step: run.model.conv1.requires_grad_(False),
    "options": lambda run, step: run.optimizer.param_groups[0].update(weight_decay=0.5),
    "parameter": lambda run, step: run.model.load_state_dict(copy.deepcopy(run.model.state_dict()), assign=True),
    "memory": lambda run, step: setattr(run.model.conv1.weight, "data", run.model.conv1.weight.data.clone()),
    "optimizer state": lambda run, step: run.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict())),
    "precision": lambda run, step: setattr(step, "precision", "bfloat16"),
    "determinism": lambda run, step: torch.use_deterministic_algorithms(True),
    "released": lambda run, step: step.release(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_a_step_depends_on_has_it_captured_anew(recorder, change: str) -> None:
    states = []
    try:
        for captured in True, False:
            run = Run()
            step = run.step_of(graph=captured)
            train(run, step, batches(6))
            CHANGES[change](run, step)
            if change == "parameter":
                run.optimizer.param_groups[0]["params"] = list(run.model.parameters())
            train(run, step, batches(5))
            if captured:
                assert (step.captures, step.replays) == (2, 5)
            states.append(run.state())
    finally:
        torch.use_deterministic_algorithms(False)
    assert_equal_state(*states)


def test_mode_that_comes_back_finds_its_graph(recorder) -> None:
    run = Run()
    step = run.step_of()
    train(run, step, batches(5))
    run.model.norm1.eval()
    train(run, step, batches(1))
    run.model.norm1.train()
    train(run, step, batches(2))
    assert (step.captures, step.replays) == (1, 4)


def test_autocast_of_the_caller_counts_as_precision(recorder) -> None:
    run = Run()
    step = run.step_of()
    train(run, step, batches(5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        train(run, step, batches(5))
    assert step.captures == 2


def test_gradients_stay_readable_and_eager_steps_start_from_none(recorder) -> None:
    run = Run()
    step = run.step_of()
    train(run, step, batches(5))
    captured = [p.grad for p in run.model.parameters()]
    run.optimizer.zero_grad()
    train(run, step, batches(1))
    assert all(p.grad is gradient for p, gradient in zip(run.model.parameters(), captured, strict=True))
    train(run, step, batches(1, size=3))
    assert all(p.grad is not gradient for p, gradient in zip(run.model.parameters(), captured, strict=True))
    step.release()
    assert not recorder.alive


def test_losses_are_not_overwritten(recorder) -> None:
    run = Run()
    train(run, run.step_of(), batches(8))
    assert len({float(loss) for loss in run.losses}) == 8
    assert all(loss.dim() == 0 and not loss.requires_grad for loss in run.losses)


def test_counts_of_an_optimizer_that_ran_before_move_to_the_device(recorder) -> None:
    """Adam keeps its count of steps on the host until it is to be captured; the meta device stands for another one."""
    state = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}
    p = nn.Parameter(torch.zeros(2, device="meta"))
    optimizer = torch.optim.Adam([p])
    optimizer.state[p] = state
    graph.DeviceNumbers([optimizer], p.device).prepare()
    assert state["step"].device.type == "meta"
    assert state["exp_avg"].device.type == "cpu"


def test_cpu_runs_the_plain_loop() -> None:
    plan = {"start": 3, "stop": 9, "interval": 3}
    ours, theirs = (Run(functools.partial(torch.optim.Adam, lr=0.01), **plan) for _ in range(2))
    step = ours.step_of()
    train(ours, step, batches(10))
    for x, labels in batches(10):
        theirs.eager(x, labels)
    assert_equal_state(ours.state(), theirs.state())
    assert (step.captures, step.obstacle) == (0, None)


WRONG = {
    "model": ({"model": 1}, "model: expected a torch.nn.Module"),
    "optimizer": ({"optimizer": []}, "optimizer: expected a torch.optim.Optimizer"),
    "loss_fn": ({"loss_fn": None}, "loss_fn: expected a function, got NoneType"),
    "scheduler": ({"scheduler": 1}, "scheduler: expected an sca.SCAScheduler, got int"),
    "precision": ({"precision": "float16"}, "precision: expected"),
    "accumulate": ({"accumulate": 0}, "accumulate: expected"),
    "warmup": ({"warmup": 0}, "warmup: expected"),
    "on_backward": ({"on_backward": 1}, "on_backward: expected a function, got int"),
    "graph": ({"graph": "on"}, "graph: expected"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_argument_is_named(name: str) -> None:
    run = Run()
    changes, words = WRONG[name]
    arguments = {"model": run.model, "optimizer": run.optimizer, "loss_fn": loss_fn, **changes}
    with pytest.raises((TypeError, ValueError), match=words):
        GraphedStep(**arguments)


def test_wrong_batch_or_loss_is_named() -> None:
    run = Run()
    x, labels = batch()
    with pytest.raises(TypeError, match="labels: expected a tensor"):
        run.step_of()(x, labels.tolist())
    step = GraphedStep(run.model, run.optimizer, lambda logits, labels: logits)
    with pytest.raises(ValueError, match="loss_fn: expected a scalar tensor"):
        step(x, labels)


INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None
BACKENDS = ["cpu", "reference", *([pytest.param("triton", marks=pytest.mark.interpreter)] if INTERPRETED else [])]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("is_pruned", [False, True], ids=["dense", "pruned"])
@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_nothing_in_a_step_waits(recorder, name: str, is_pruned: bool, backend: str) -> None:
    """Of a whole step as it stands, which is what is captured: passes, activity, optimizer, scheduler."""
    torch.manual_seed(0)
    model = sca.models.build(
        "vgg5", num_classes=4, in_channels=2, time_steps=2, image_size=8, width=0.125, backend=backend
    )
    optimizer = OPTIMIZERS[name](model.parameters())
    scheduler = sca.SCAScheduler(model, optimizer, start=90, stop=99, interval=9, density=0.5)
    if is_pruned:
        for members in find_groups(model).values():
            members.group.set_active(range(0, members.group.num_channels, 2))
    step = GraphedStep(model, optimizer, lambda logits, labels: loss_fn(logits.mean(0), labels), scheduler)
    x, labels = torch.rand(3, 2, 8, 8), torch.arange(3)
    step(x, labels)
    step(x, labels)
    with F.check_nan(False), nobody_waits():
        step(x, labels)
    step(x, labels)
    with nobody_waits():
        step(x, labels)
    assert (step.captures, step.replays) == (1, 2)


@pytest.mark.parametrize("read", [Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.nonzero, bool, float], ids=str)
def test_a_planted_read_is_refused(read: Callable[[Tensor], Any]) -> None:
    run = Run()
    step = run.step_of(on_backward=lambda: read(run.model.conv1.weight.grad.sum()))
    with F.check_nan(False), nobody_waits(), pytest.raises(Waits, match="waits for the device"):
        step(*batch())


def test_own_average_equals_that_of_torch() -> None:
    """It hands no number to the device, and moves the same bits."""
    run = Run()
    ours = sca.training.average.averaged(run.model, 0.9)
    theirs = AveragedModel(run.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for x, labels in batches(4):
        run.eager(x, labels)
        for average in ours, theirs:
            average.update_parameters(run.model)
    assert_equal_state(ours.state_dict(), theirs.state_dict())


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@cuda
@pytest.mark.gpu
@pytest.mark.parametrize("name", ["momentum", "adamw"])
def test_cuda_graph_trains_as_the_same_steps_without(monkeypatch, name: str) -> None:
    """With updates, changes of the learning rate and odd batches; beside steps that only ever warm up, which launch the
    same kernels: a spike more or less, for rounding alone, would part the two."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    states = []
    for captured in True, False:
        torch.manual_seed(0)
        model = ConvNet().cuda()
        optimizer = (torch.optim.AdamW if name == "adamw" else torch.optim.SGD)(model.parameters(), lr=0.01)
        scheduler = sca.SCAScheduler(model, optimizer, start=8, stop=16, interval=8, density=0.5, min_channels=2)
        step = GraphedStep(model, optimizer, loss_fn, scheduler, warmup=3 if captured else 1000)
        losses = []
        for at, (x, labels) in enumerate(batches(24, odd=(6, 14))):
            optimizer.param_groups[0]["lr"] = 0.01 / (1 + at)
            losses.append(step(x.cuda(), labels.cuda()))
        states.append((torch.stack(losses).cpu(), {k: v.cpu() for k, v in model.state_dict().items()}))
        assert step.captures == (3 if captured else 0), step.obstacle
        assert len(scheduler.history) == 2
    torch.testing.assert_close(states[0][0], states[1][0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(states[0][1], states[1][1], rtol=1e-3, atol=1e-3)


@cuda
@pytest.mark.gpu
def test_nothing_in_a_step_waits_on_a_cuda_device() -> None:
    model = ConvNet().cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    step = GraphedStep(model, optimizer, loss_fn, sca.SCAScheduler(model, optimizer, start=90, stop=99, interval=9))
    x, labels = (z.cuda() for z in batch())
    for _ in range(5):
        step(x, labels)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(x, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert step.captures == 1


@cuda
@pytest.mark.gpu
def test_read_in_a_cuda_capture_loses_no_step() -> None:
    torch.manual_seed(0)
    model = Reading().cuda()
    step = GraphedStep(model, torch.optim.SGD(model.parameters(), lr=0.01), loss_fn)
    losses = [float(step(x.cuda(), labels.cuda())) for x, labels in batches(8)]
    assert step.captures == 0
    assert "waits for the device" in step.obstacle
    assert all(loss == loss for loss in losses)
