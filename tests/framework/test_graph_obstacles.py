"""Training steps that can't be captured, or of which a capture fails: they run as they stand, no step is lost, and the
reason is named once. On the CPU a stand-in records operators (:mod:`tests.framework.recorded`)."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sca.pruning.optimizer import _Block
from sca.training import GraphedStep, obstacles
from sca_kernels import nn as snn
from tests.framework.graphed import RATE, Reading, Run, batches, loss_fn, sgd, train
from tests.framework.pruning_nets import ConvNet
from tests.framework.recorded import Waits
from tests.framework.watched import assert_equal_state


@pytest.mark.parametrize("where", ["forward", "on_backward"])
def test_failed_capture_loses_no_step_and_is_named_once(recorder, caplog, where: str) -> None:
    plan = {"start": 9, "stop": 18, "interval": 9}
    net = Reading if where == "forward" else ConvNet
    ours, theirs = Run(net=net, **plan), Run(net=net, **plan)
    read = (lambda: float(ours.model.conv1.weight.grad.sum())) if where == "on_backward" else None
    step = ours.step_of(on_backward=read)
    train(ours, step, batches(20))
    for x, labels in batches(20):
        theirs.eager(x, labels)
    assert_equal_state(ours.state(), theirs.state())
    assert step.captures == 0
    assert "Waits" in step.obstacle
    assert [record.message for record in caplog.records if "CUDA graph" in record.message] == [
        f"training steps run without a CUDA graph: {step.obstacle}"
    ]


def test_capture_that_fails_within_the_optimizer_puts_blocks_back(recorder, monkeypatch) -> None:
    """The optimizer holds blocks of active channels then."""
    inner = torch.optim.SGD.step

    def reading(optimizer, *arguments):
        result = inner(optimizer, *arguments)
        optimizer.param_groups[0]["params"][0].sum().item()
        return result

    monkeypatch.setattr(torch.optim.SGD, "step", reading)
    ours, theirs = Run(start=4, stop=8, interval=4), Run(start=4, stop=8, interval=4)
    step = ours.step_of(warmup=1)
    train(ours, step, batches(12))
    for x, labels in batches(12):
        theirs.eager(x, labels)
    assert "Waits" in step.obstacle
    assert_equal_state(ours.state(), theirs.state())


@pytest.mark.parametrize("error", [Waits, KeyboardInterrupt])
def test_capture_that_breaks_off_leaves_everything_as_it_was(recorder, monkeypatch, error: type[BaseException]) -> None:
    """At the worst place: where blocks of active channels, which the optimizer has seen, are to be put back, and from
    where on nothing can be launched any more."""
    runs = [Run(start=2, stop=6, interval=4) for _ in range(2)]
    (ours, step), theirs = (runs[0], runs[0].step_of()), runs[1]
    given = list(batches(14))
    train(ours, step, given[:9])
    before = ours.state()
    places = [(p.data_ptr(), p.shape, p.grad) for p in ours.model.parameters()]
    inner, record = _Block.write, recorder.record

    def broken(*arguments: Any) -> None:
        raise error("in a capture")

    def recorded(work: Callable[[], Tensor]) -> Any:
        _Block.write = broken
        try:
            return record(work)
        finally:
            _Block.write = inner

    recorder.record = recorded
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            step(*given[9])
        assert_equal_state(ours.state(), before)
        assert [(p.data_ptr(), p.shape, p.grad) for p in ours.model.parameters()] == places
        assert ours.scheduler.step() is None
        assert ours.scheduler.steps == 9
    recorder.record = recorded if error is Waits else record
    train(ours, step, given[9:])
    for x, labels in given:
        theirs.eager(x, labels)
    assert_equal_state(ours.state(), theirs.state())


def test_step_that_waits_is_not_captured_at_all(recorder, caplog) -> None:
    """On CUDA a capture that fails leaves traces."""
    recorder.tells_waits = True
    recorder.record = None
    ours, theirs = Run(net=Reading), Run(net=Reading)
    step = ours.step_of()
    train(ours, step, batches(12))
    for x, labels in batches(12):
        theirs.eager(x, labels)
    assert_equal_state(ours.state(), theirs.state())
    assert step.obstacle == "a step waits for the device, at aten._local_scalar_dense.default"
    assert len(caplog.records) == 1


class Stateful(nn.Module):
    """Goes on from its last potential."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.last = ConvNet(), snn.LIF(stateful=True)

    def forward(self, x: Tensor) -> Tensor:
        snn.detach(self)
        return self.last(self.net(x)[None]).mean(0)


class Counting(ConvNet):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return super().forward(x)


def _hooked() -> nn.Module:
    net = ConvNet()
    net.norm1.register_forward_hook(lambda module, inputs, output: None)
    return net


def _synchronised() -> nn.Module:
    net = ConvNet()
    net.norm1.process_group = True
    return net


class Stepping(torch.optim.SGD):
    """Another optimizer, of which nothing is known."""


OBSTACLES = {
    "stateful": (Stateful, sgd, r"last \(LIF\) keeps v from step to step"),
    "counting": (Counting, sgd, r"the model \(Counting\) keeps calls from step to step"),
    "hook": (_hooked, sgd, r"norm1 \(BatchNormLIF\) has the hook .*capturable = True"),
    "optimizer": (ConvNet, Stepping, "the optimizer Stepping has no option 'capturable'"),
    "Adagrad": (ConvNet, torch.optim.Adagrad, "the optimizer Adagrad has no option 'capturable'"),
    "compiled": (lambda: torch.compile(ConvNet(), backend="eager"), sgd, "compiled by torch.compile"),
    "data parallel": (lambda: nn.DataParallel(ConvNet()), sgd, r"the model \(DataParallel\) is spread"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_cannot_be_captured_runs_as_it_stands_and_is_named_once(recorder, caplog, name: str) -> None:
    net, optimizer, words = OBSTACLES[name]
    runs = []
    for captured in True, False:
        torch.manual_seed(0)
        model = net()
        options = {"lr": RATE, **({"fused": True} if optimizer is sgd else {})}
        step = GraphedStep(model, optimizer(model.parameters(), **options), loss_fn, graph=captured)
        losses = [step(x, labels) for x, labels in batches(9)]
        assert step.captures == 0
        runs.append((losses, copy.deepcopy(model.state_dict())))
        if captured:
            step_of_graph = step
    assert_equal_state(*runs)
    named = [record.message for record in caplog.records if "CUDA graph" in record.message]
    assert len(named) == 1
    assert named[0].endswith(step_of_graph.obstacle)
    assert re.search(words, named[0])


def test_batch_norm_over_processes_is_an_obstacle() -> None:
    assert "waits for other processes" in obstacles.of_model(_synchronised(), torch.device("cpu"))


@pytest.mark.parametrize("put", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_on_a_gradient_that_comes_behind_a_capture_is_called(recorder, caplog, put: str) -> None:
    run, seen = Run(), []
    step = run.step_of()
    train(run, step, batches(5))
    assert step.replays
    getattr(run.model.conv1.weight, put)(lambda z: seen.append(z.shape))
    train(run, step, batches(2))
    assert len(seen) == 2
    assert "conv1.weight has a hook on its gradient" in step.obstacle
    assert step.obstacle in caplog.text


def test_hook_that_says_so_is_captured(recorder) -> None:
    run = Run()

    def leave(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * 1

    leave.capturable = True
    run.model.norm1.register_forward_hook(leave)
    step = run.step_of()
    train(run, step, batches(5))
    assert step.captures == 1


def test_steps_of_which_no_two_are_alike_are_named(recorder, caplog) -> None:
    run = Run()
    step = run.step_of()
    for at, (x, labels) in enumerate(batches(24)):
        run.optimizer.param_groups[0]["momentum"] = 0.5 + at / 100
        train(run, step, [(x, labels)])
    assert step.captures == 0
    assert [record.message for record in caplog.records] == [
        "training steps run without a CUDA graph: no two steps in a row are alike, by their options"
    ]
