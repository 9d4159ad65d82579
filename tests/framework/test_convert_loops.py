"""Networks that loop over time, turned inside out, compute what their loops do, exactly: see looping_nets.py."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sca.convert.loops import fold, over_time
from tests.framework.foreign import NETS
from tests.framework.looping_nets import (
    LOOPS,
    Every,
    Keeping,
    Leaky,
    N,
    Net,
    T,
    accumulated,
    agree,
    batch_first,
    constant,
    ended_anew,
    flat,
    grid,
    gridded,
    kept,
    neurons_of,
    recorded,
    reset,
    results,
    seen_by,
    stacked,
    started_anew,
    step,
)


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_a_loop_in_forward_folded_is_the_loop(loop: Callable) -> None:
    agree(Net(loop), grid(T, N, 6), others=((grid(8, 2, 6, seed=3),), (grid(1, 4, 6, seed=4),)))


def test_neurons_run_once_over_all_steps_and_layers_once_on_all_frames() -> None:
    net = gridded(Net(recorded))
    neurons = neurons_of(net)
    folded = fold(net, (grid(T, N, 6),), neurons)
    with seen_by(net.fc1, net.fc2) as seen:
        folded(grid(T, N, 6))
    assert [neuron.shapes for neuron in neurons.values()] == [[(T, N, 5)], [(T, N, 4)]]
    assert seen == [(T * N, 6), (T * N, 5)]
    assert folded.steps == T
    assert folded.stepwise == ()


def test_layers_in_front_of_the_first_neuron_run_once_on_a_constant_input() -> None:
    folded = agree(Net(constant), grid(N, 6), others=((grid(5, 6, seed=3),),))
    folded.module.steps = 9
    assert folded(grid(N, 6)).shape == (N, 9, 4)  # the number of steps is the network's
    with seen_by(folded.module.fc1) as seen:
        folded(grid(N, 6))
    assert seen == [(N, 6)]


LEVEL = 2.0


def test_numbers_outside_of_the_network_may_change(monkeypatch) -> None:
    steps = 3

    def loop(net: Net, x: Tensor) -> Any:
        mem1 = mem2 = None
        spikes = []
        for _ in range(steps):
            _, mem1, spk2, mem2 = step(net, x * LEVEL * net.config["gain"], mem1, mem2)
            spikes.append(spk2)
        return torch.stack(spikes)

    net = gridded(Net(loop))
    net.config = {"gain": 1.0}
    original, x = copy.deepcopy(net), grid(N, 6)
    folded = fold(net, (x,), neurons_of(net))
    first = folded(x)
    steps = 6
    assert folded(x).shape[0] == 6
    monkeypatch.setitem(globals(), "LEVEL", 0.25)
    assert torch.equal(folded(x), original(x))
    for model in (net, original):
        model.config["gain"] = 8.0
    assert torch.equal(folded(x)[:3], first)


def test_batch_first_input_and_what_is_left_of_the_last_step() -> None:
    agree(Net(batch_first), grid(N, T, 6), others=((grid(2, 7, 6, seed=3),),))


@pytest.mark.parametrize("loop", [kept, started_anew, ended_anew], ids=lambda loop: loop.__name__)
def test_states_inside_the_neurons_end_as_the_loop_leaves_them(loop: Callable) -> None:
    agree(Net(loop, Keeping), grid(T, N, 6), others=((grid(7, 2, 6, seed=3),),))
    net = gridded(Net(loop, Keeping))
    original, x = copy.deepcopy(net), grid(T, N, 6)
    folded = fold(net, (x,), neurons_of(net))
    assert net.lif1.v == 0.0
    for _ in range(2):  # the second begins where the first ended
        assert torch.equal(folded(x), original(x))
        assert type(net.lif1.v) is type(original.lif1.v)
        assert loop is ended_anew or torch.equal(net.lif1.v, original.lif1.v)


class Convolutional(nn.Module):
    """[T, N, 2, 6, 6] -> [N, 4]; blocks of layers, pools as modules and functions."""

    def __init__(self, norm: bool = False, inplace: bool = True) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4) if norm else nn.Identity())
        self.relu, self.lif1, self.lif2 = nn.ReLU(inplace=inplace), Keeping(), Keeping()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 9, 4))

    def forward(self, x: Tensor) -> Tensor:
        reset(self)
        out = 0
        for x_t in x:
            y = self.lif1(self.relu(self.block(x_t)))
            out = out + self.lif2(self.head(F.max_pool2d(y, 2)))
        return out / len(x)


def test_convolutions_keep_channels_last() -> None:
    net = agree(Convolutional(), grid(4, N, 2, 6, 6), others=((grid(8, 2, 2, 6, 6, seed=3),),)).module
    x = grid(4, N, 2, 6, 6).flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (4, N))
    strides = []
    net.block[0].register_forward_pre_hook(lambda _, x: strides.append(x[0].stride()))
    net.to(memory_format=torch.channels_last)(x)  # recorded: the hook is called step by step
    strides.clear()
    net(x)
    assert set(strides) == {x[0].stride()}


def test_a_batch_norm_in_training_runs_step_by_step_unless_statistics_are_merged() -> None:
    torch.manual_seed(0)
    net, x = Convolutional(norm=True), torch.rand(4, N, 2, 6, 6)
    original = copy.deepcopy(net)
    folded = fold(net, (x,), neurons_of(net))
    assert folded.stepwise[0] == "block.1 (BatchNorm2d)"
    assert "add at test_convert_loops" in folded.stepwise[1]  # the sum over time
    torch.testing.assert_close(results(folded, net, (x,)), results(original, original, (x,)))
    assert net.block[1].num_batches_tracked == 4
    net.eval(), original.eval()
    torch.testing.assert_close(folded(x), original(x))
    folded.revert()
    folded = fold(net.train(), (x,), neurons_of(net), merge_statistics=True)
    assert not any("BatchNorm" in what for what in folded.stepwise)
    before = int(net.block[1].num_batches_tracked)
    folded(x)
    assert net.block[1].num_batches_tracked == before + 1


def test_dropout_draws_a_mask_per_step() -> None:
    def loop(net: Net, x: Tensor) -> Any:
        mem1 = mem2 = None
        spikes = []
        for _ in range(200):
            current = F.dropout(net.drop(net.fc1(x)), 0.5, net.training)
            spk1, mem1 = net.lif1(current, mem1)
            _, mem2 = net.lif2(net.fc2(spk1), mem2)
            spikes.append(current == 0)
        return torch.stack(spikes)

    net = gridded(Net(loop))
    net.drop = nn.Dropout(0.5)
    folded = fold(net, (grid(N, 6),), neurons_of(net))
    rates = folded(grid(N, 6)).float().mean((1, 2))
    assert rates.std() > 0.05
    assert abs(rates.mean() - 0.75) < 0.05
    net.eval()
    assert torch.equal(folded(grid(N, 6))[0], folded(grid(N, 6))[-1])


def test_random_numbers_of_each_step_are_its_own() -> None:
    def loop(net: Net, x: Tensor) -> Any:
        mem1 = mem2 = None
        spikes = []
        for _ in range(T):
            _, mem1, spk2, mem2 = step(net, (torch.rand_like(x) < x / 2).float(), mem1, mem2)
            spikes.append(spk2)
        return torch.stack(spikes)

    net = gridded(Net(loop))
    original = copy.deepcopy(net)
    folded = fold(net, (grid(N, 6),), neurons_of(net))
    torch.manual_seed(3)
    expected = original(grid(N, 6))
    torch.manual_seed(3)
    assert torch.equal(folded(grid(N, 6)), expected)  # one draw per step, in order


class Dropout(nn.Dropout):
    """One mask for all steps, as SpikingJelly's: it keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = None

    def forward(self, x: Tensor) -> Tensor:
        if self.mask is None:
            self.mask = (torch.rand_like(x) > 0.5).to(x)
        return x * self.mask


class Doubting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 30 else x


@pytest.mark.parametrize("layer", [Dropout, Doubting])
def test_a_module_that_keeps_something_or_looks_at_values_is_called_step_by_step(layer: type[nn.Module]) -> None:
    def loop(net: Net, x: Tensor) -> Any:
        if isinstance(net.extra, Dropout):
            net.extra.mask = None
        mem1 = mem2 = None
        spikes = []
        for x_t in x:
            spk1, mem1 = net.lif1(net.extra(net.fc1(x_t)), mem1)
            spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
            spikes.append(spk2)
        return torch.stack(spikes)

    net = Net(loop)
    net.extra = layer()
    folded = agree(net, grid(T, N, 6), between=lambda _: torch.manual_seed(0))
    assert folded.stepwise == (f"extra ({layer.__name__})",)


class FunctionalNorm(nn.BatchNorm2d):
    """Not torch's own: looked into."""

    def forward(self, x: Tensor) -> Tensor:
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, self.weight, self.bias, self.training, self.momentum, self.eps)


def test_statistics_of_a_function_are_merged_as_well() -> None:
    torch.manual_seed(0)
    net, x = Convolutional(norm=True), torch.rand(4, N, 2, 6, 6)
    net.block[1] = FunctionalNorm(4)
    original = copy.deepcopy(net)
    folded = fold(net, (x,), neurons_of(net))
    torch.testing.assert_close(results(folded, net, (x,)), results(original, original, (x,)))
    folded.revert()
    folded = fold(net, (x,), neurons_of(net), merge_statistics=True)
    assert not any("batch_norm" in what for what in folded.stepwise)
    net.block[1].reset_running_stats()
    folded(x)
    frames = net.block[0](x.flatten(0, 1))
    torch.testing.assert_close(net.block[1].running_mean, frames.mean((0, 2, 3)) / 10)


def test_nothing_of_a_pass_is_kept() -> None:
    net = gridded(Net(accumulated))
    folded = fold(net, (x := grid(T, N, 6),), neurons_of(net))
    gc.collect()
    before = sum(issubclass(type(y), Tensor) for y in gc.get_objects())
    for steps in (T, 7, 8):
        folded(grid(steps, N, 6))
    gc.collect()
    assert sum(issubclass(type(y), Tensor) for y in gc.get_objects()) == before
    del x


class Scaled(nn.Module):
    """Has no code that needs to be called as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.gain = nn.Linear(6, 5), nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(self.fc(x) * self.gain.abs(), max=3)


def test_layers_of_the_users_are_looked_into() -> None:
    net = Net(recorded)
    net.fc1 = Scaled()
    assert agree(net, grid(T, N, 6)).stepwise == ()


def test_a_layer_with_a_hook_is_called_step_by_step() -> None:
    net = Net(recorded)
    seen = []
    net.fc2.register_forward_hook(lambda _, x, y: seen.append(x[0].shape))
    assert agree(net, grid(T, N, 6)).stepwise == ("fc2 (Linear)",)
    seen.clear()
    net(grid(T, N, 6))
    assert seen == [(N, 5)] * T


# Loops in the training script


def single_step(*neurons: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 5), neurons[0], nn.Linear(5, 4), neurons[1])


def test_a_network_that_its_user_calls_step_by_step() -> None:
    net = over_time(single_step(Keeping(), Keeping()))
    agree(net, grid(T, N, 6), others=((grid(8, 2, 6, seed=3),),))
    reset(net)
    once = net(grid(N, 6), time_steps=T)
    reset(net)
    assert torch.equal(once, net(grid(N, 6).expand(T, N, 6)))


class Passing(nn.Module):
    """The state goes through the container, as with norse."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = single_step(Leaky(), Leaky())

    def forward(self, x: Tensor, state: list | None = None) -> tuple[Tensor, list]:
        state = [None] * 4 if state is None else state
        for index, layer in enumerate(self.layers):
            if isinstance(layer, Leaky):
                x, state[index] = layer(x, state[index])
            else:
                x = layer(x)
        return x, state


def test_states_that_go_through_the_network() -> None:
    net = gridded(over_time(Passing(), states=True))
    original, x = copy.deepcopy(net), grid(T, N, 6)
    folded = fold(net, (x,), neurons_of(net))
    assert folded.stepwise == ()
    for model in (folded, original):
        outputs, state = model(x)
        more, state = model(x, state)
        model.outputs = [outputs, more, state[1], state[3]]
        assert state[0] is None
    assert all(map(torch.equal, folded.outputs, original.outputs))


# The network stays what it is


def test_parameters_names_and_classes_stay_and_come_back() -> None:
    net = gridded(Net(recorded))
    kind, modules = Net, dict(net.named_modules())
    parameters, state = dict(net.named_parameters()), net.state_dict()
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    folded = fold(net, (grid(T, N, 6),), neurons_of(net))
    assert folded.module is net
    assert isinstance(net, Net)
    assert dict(net.named_modules()) == modules
    assert all(p is parameters[name] for name, p in net.named_parameters())
    assert list(net.state_dict()) == list(state)
    net(grid(T, N, 6))[1].sum().backward()
    optimizer.step()
    learnt = net(grid(T, N, 6))
    net.load_state_dict(state)
    folded.revert()
    assert type(net) is kind
    assert "folding" not in vars(net)
    assert all(map(torch.equal, net(grid(T, N, 6)), learnt))


def test_copies_and_pickles_are_folded_too() -> None:
    net = gridded(Net(recorded))
    fold(net, (grid(T, N, 6),), neurons_of(net))
    expected = net(grid(T, N, 6))
    with torch.no_grad():
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert all(map(torch.equal, other(grid(T, N, 6)), expected))
            neuron = other.folding.neurons[other.lif1]
            assert neuron.shapes[-1] == (T, N, 5)
            other.fc1.weight.zero_()
            other.fc1.bias.zero_()
            assert not torch.equal(other(grid(T, N, 6))[1], expected[1])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_under_other_modes(mode: Callable) -> None:
    net = gridded(Net(accumulated))
    original, x = copy.deepcopy(net), grid(T, N, 6)
    folded = fold(net, (x,), neurons_of(net))
    with mode():
        for _ in range(2):
            for expected, got in zip(original(x), folded(x), strict=True):
                assert torch.equal(expected, got)
                assert got.dtype == expected.dtype
                assert got.requires_grad == expected.requires_grad


def test_a_neuron_is_told_what_is_read_of_it() -> None:
    class Told(Every):
        def all_steps(self, module: nn.Module, currents: Tensor, *states: Any, needed: tuple[str, ...] = ()) -> Any:
            self.needed = needed
            spikes, potentials = super().all_steps(module, currents, *states)
            kinds = {"all": lambda y: y, "last": lambda y: y[-1:], "none": lambda y: None}
            return tuple(kinds[need](y) for need, y in zip(needed, (spikes, potentials), strict=True))

    net = gridded(Net(batch_first))
    original, x = copy.deepcopy(net), grid(N, T, 6)
    neurons = {net.lif1: Told(), net.lif2: Told()}
    folded = fold(net, (x,), neurons)
    assert all(map(torch.equal, folded(x), original(x)))
    assert [neuron.needed for neuron in neurons.values()] == [("all", "none"), ("all", "last")]


# snnTorch and norse


class Foreign(Every):
    def all_steps(self, module: nn.Module, currents: Tensor, *states: Any) -> Any:
        hidden = getattr(module, "init_hidden", False)
        outputs = []
        for x in currents:
            outputs.append(module(x, *states))
            states = () if hidden else outputs[-1][1:]
        return stacked(outputs)


@pytest.mark.parametrize(
    "name", ["snntorch_tutorial5", "snntorch_tutorial6", "snntorch_conv_loop", "snntorch_synaptic", "norse_sequential"]
)
def test_networks_of_snntorch_and_norse(name: str) -> None:
    foreign = NETS[name]
    foreign.skip_unless_installed()
    inside = foreign.time != "single"
    model = foreign.build()
    model = model if inside else over_time(model, states=foreign.origin == "norse")
    x = foreign.example()
    neurons = {
        module: Foreign()
        for module in model.modules()
        if type(module).__module__.startswith(("snntorch", "norse")) and not list(module.children())
    }
    assert len(neurons) >= 2
    foreign.reset(model if inside else model.model)
    torch.manual_seed(0)

    def run() -> list[Tensor]:
        foreign.reset(model if inside else model.model)
        model.zero_grad()
        outputs = flat(model(x))
        sum(y.float().square().sum() for y in outputs).backward()
        return [y.detach() for y in outputs] + [p.grad.clone() for p in model.parameters() if p.grad is not None]

    expected = run()
    folded = fold(model, (x,), neurons)
    got = run()
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
    assert folded.stepwise == ()
    assert expected[0].any()
