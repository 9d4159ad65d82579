"""Loops over time that can't be turned inside out are refused, with what stands in the way and where."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sca.convert import loops
from sca.convert.loops import LoopError, fold
from tests.framework.looping_nets import (
    Every,
    Keeping,
    Leaky,
    N,
    Net,
    Step,
    T,
    grid,
    gridded,
    kept,
    neurons_of,
    recorded,
    reset,
    results,
)


def recurrent(net: Net, x: Tensor) -> Any:
    mem1 = mem2 = None
    spk2, spikes = torch.zeros(x.shape[1], 4), []
    for x_t in x:
        spk1, mem1 = net.lif1(net.fc1(x_t) + spk2.sum(1, keepdim=True), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        spikes.append(spk2)
    return torch.stack(spikes)


def cut(net: Net, x: Tensor) -> Any:
    mem1 = mem2 = None
    for x_t in x:
        spk1, mem1 = net.lif1(net.fc1(x_t), None if mem1 is None else mem1.detach())
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
    return spk2


def looked_at(net: Net, x: Tensor) -> Any:
    mem1 = mem2 = None
    for x_t in x:
        spk1, mem1 = net.lif1(net.fc1(x_t), mem1)
        if spk1.sum() == 0:
            break
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
    return spk2


def drawn(net: Net, x: Tensor) -> Any:
    import random

    return recorded(net, x)[0] * random.random()


def drawn_by_torch(net: Net, x: Tensor) -> Any:
    return recorded(net, x)[0] if torch.rand(()).item() < 2 else None


def seeding(net: Net, x: Tensor) -> Any:
    torch.manual_seed(0)
    return recorded(net, x)[0] * torch.rand(())


def twice(net: Net, x: Tensor) -> Any:
    """Its own spikes come back to a neuron that keeps its state, within the step."""
    return torch.stack([net.lif1(net.fc1(net.lif1(x_t[:, :5]).repeat(1, 2)[:, :6])) for x_t in x])


def stored(net: Net, x: Tensor) -> Any:
    net.spikes = recorded(net, x)[0]
    return net.spikes.sum(0)


def interrupted(net: Net, x: Tensor) -> Any:
    spikes = []
    for t, x_t in enumerate(x):
        if t == 2:
            reset(net)
        spikes.append(net.lif2(net.fc2(net.lif1(net.fc1(x_t)))))
    return torch.stack(spikes)


def peeked(net: Net, x: Tensor) -> Any:
    out = 0
    for x_t in x:
        net.lif2(net.fc2(net.lif1(net.fc1(x_t))))
        out = out + net.lif2.v
    return out


def inlined(net: Net, x: Tensor) -> Any:
    mem1 = mem2 = None
    out = []
    for x_t in x:
        spk1, mem1 = net.lif1(Step.apply(net.fc1(x_t)), mem1)
        _, mem2 = net.lif2(net.fc2(spk1), mem2)
        out.append(mem2)
    return torch.stack(out)


def inlined_by_native_code(net: Net, x: Tensor) -> Any:
    apply, mem1, out = functools.partial(Step.apply), None, []
    for x_t in x:
        spk1, mem1 = net.lif1(apply(net.fc1(x_t)), mem1)
        out.append(spk1)
    return torch.stack(out)


REFUSED = {
    recurrent: r"lif1.* lif2|lif2.* lif1.*step by step",
    cut: r"lif1 \(Leaky\) is not given, at step 1, the state that it returned at step 0",
    looked_at: r"bool at test_convert_loops_refused.py:\d+ reads the values of a tensor",
    drawn: r"random numbers of Python",
    seeding: r"seeds torch's random numbers",
    drawn_by_torch: r"item at test_convert_loops_refused.py:\d+ reads the values",
    stored: r"the model \(Net\) keeps what it computes, in 'spikes'",
    interrupted: r"what lif1 \(Keeping\) keeps is changed between two of its calls",
    peeked: r"v of lif2 \(Keeping\) is read from outside",
    twice: r"what lif1 \(Keeping\) gives at one step comes back to lif1",
    inlined: r"Step.apply has a gradient of its own",
    inlined_by_native_code: r"Step.apply has a gradient of its own",
}


@pytest.mark.parametrize("loop", REFUSED, ids=lambda loop: loop.__name__)
def test_refused_with_what_and_where(loop: Callable) -> None:
    net = gridded(Net(loop, Keeping if loop in (interrupted, peeked, twice) else Leaky))
    held, kind, x = {**vars(net.lif1)}, type(net), grid(T, N, 6)
    random_state = torch.get_rng_state()
    with pytest.raises(LoopError, match=REFUSED[loop]):
        fold(net, (x,), neurons_of(net))
    assert type(net) is kind
    assert {**vars(net.lif1)} == held
    assert "spikes" not in vars(net)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(x, grid(T, N, 6))


def test_refused_without_a_loop() -> None:
    net = Net(recorded)
    with pytest.raises(LoopError, match="at least two time steps"):
        fold(net, (grid(1, N, 6),), neurons_of(net))
    with pytest.raises(LoopError, match="none of those that can be converted is called"):
        fold(net, (grid(T, N, 6),), {})
    net.forward = lambda x: x
    with pytest.raises(LoopError, match="set on the object"):
        fold(net, (grid(T, N, 6),), neurons_of(net))


def test_neurons_that_are_not_given_run_step_by_step() -> None:
    for loop, neuron in ((recorded, Leaky), (kept, Keeping)):
        net = gridded(Net(loop, neuron))
        original, x = copy.deepcopy(net), grid(T, N, 6)
        folded = fold(net, (x,), {net.lif1: Every()})
        assert any("lif2" in what for what in folded.stepwise)
        for expected, got in zip(results(original, original, (x,)), results(folded, net, (x,)), strict=True):
            assert torch.equal(expected, got)


def test_what_cannot_be_folded_later_runs_as_it_was(caplog) -> None:
    def loop(net: Net, x: Tensor) -> Any:
        return recurrent(net, x) if len(x) > 6 else recorded(net, x)[0]

    net = gridded(Net(loop))
    original = copy.deepcopy(net)
    folded = fold(net, (grid(T, N, 6),), neurons_of(net))
    with caplog.at_level(logging.WARNING, logger=loops.__name__):
        for _ in range(2):
            assert torch.equal(folded(grid(8, N, 6)), original(grid(8, N, 6)))
    assert len(caplog.records) == 1
    assert "lif1 (Leaky)" in caplog.text
