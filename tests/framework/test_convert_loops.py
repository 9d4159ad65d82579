"""Networks that loop over time, turned inside out, compute what their loops do.

Weights, inputs and decays are on a grid, so that sums are exact in any order and equality can be exact.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import logging
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sca.convert import loops
from sca.convert.loops import Folded, LoopError, fold, over_time
from tests.framework.foreign import NETS

T, N = 5, 3


class Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (x.abs() < 1).to(x.dtype)


class Leaky(nn.Module):
    """One step per call; the potential goes in and out."""

    def forward(self, x: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        v = x if v is None else v / 2 + x
        spikes = Step.apply(v - 1)
        return spikes, v - spikes


class Keeping(Leaky):
    """One step per call; the potential stays inside, as with SpikingJelly and with snnTorch's hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.v = 0.0

    def forward(self, x: Tensor) -> Tensor:
        spikes, self.v = super().forward(x, None if isinstance(self.v, float) else self.v)
        return spikes

    def reset(self) -> None:
        self.v = 0.0


class Every:
    """Runs a neuron over all steps by calling it step by step; counts its own calls."""

    def __init__(self) -> None:
        self.shapes: list[torch.Size] = []

    def all_steps(self, module: nn.Module, currents: Tensor, *states: Any) -> Any:
        self.shapes.append(currents.shape)
        outputs = []
        for x in currents:
            outputs.append(module(x, *states))
            states = outputs[-1][1:] if isinstance(outputs[-1], tuple) else ()
        return stacked(outputs)


def stacked(outputs: list) -> Any:
    if isinstance(outputs[0], Tensor):
        return torch.stack(outputs)
    items = [stacked(list(group)) for group in zip(*outputs, strict=True)]
    return type(outputs[0])(*items) if hasattr(outputs[0], "_fields") else tuple(items)


@contextlib.contextmanager
def seen_by(*layers: nn.Module) -> Iterator[list[torch.Size]]:
    """The shapes of what layers are given, of a plan that was made before."""
    seen: list[torch.Size] = []
    handles = [layer.register_forward_hook(lambda _, x, y: seen.append(x[0].shape)) for layer in layers]
    yield seen
    for handle in handles:
        handle.remove()


def gridded(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randint(-4, 6, p.shape, generator=generator) / 8)
    return model


def grid(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 8, shape, generator=torch.Generator().manual_seed(seed)) / 4


def neurons_of(model: nn.Module) -> dict[nn.Module, Every]:
    return {module: Every() for module in model.modules() if isinstance(module, Leaky)}


def reset(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Keeping):
            module.reset()


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [x for item in value for x in flat(item)] if isinstance(value, tuple | list) else []


def results(model: Callable, root: nn.Module, inputs: tuple) -> list[Tensor]:
    """Outputs, the gradients of inputs and parameters, buffers."""
    inputs = tuple(x.clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)
    root.zero_grad()
    outputs = flat(model(*inputs))
    sum((y * grid(*y.shape, seed=1)).sum() for y in outputs if y.requires_grad).backward()
    grads = [x.grad for x in (*inputs, *root.parameters()) if isinstance(x, Tensor)]
    return [y.detach() for y in outputs] + [g for g in grads if g is not None] + [b.clone() for b in root.buffers()]


def agree(model: nn.Module, *inputs: Any, others: tuple = (), between: Callable = reset, **options: Any) -> Folded:
    """Fold, and compare with a copy that is not: on the example, again, and on other inputs."""
    gridded(model)
    original = copy.deepcopy(model)
    folded = fold(model, inputs, neurons_of(model), **options)
    for arguments in (inputs, inputs, *others):
        between(original)
        expected = results(original, original, arguments)
        between(model)
        got = results(folded, model, arguments)
        assert len(expected) == len(got)
        assert any(y.any() for y in expected)
        for a, b in zip(expected, got, strict=True):
            assert torch.equal(a, b)
    return folded


class Net(nn.Module):
    """Two layers; what loops over them is given."""

    def __init__(self, loop: Callable, neuron: type[nn.Module] = Leaky) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(6, 5), nn.Linear(5, 4)
        self.lif1, self.lif2 = neuron(), neuron()
        self.loop, self.steps = loop, T

    def forward(self, *inputs: Any) -> Any:
        return self.loop(self, *inputs)


def step(net: Net, x: Tensor, mem1: Any = None, mem2: Any = None) -> tuple[Tensor, ...]:
    spk1, mem1 = net.lif1(net.fc1(x), mem1)
    spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
    return spk1, mem1, spk2, mem2


def recorded(net: Net, x: Tensor) -> Any:
    mem1 = mem2 = None
    spikes, membranes = [], []
    for t in range(x.shape[0]):
        _, mem1, spk2, mem2 = step(net, x[t], mem1, mem2)
        spikes.append(spk2)
        membranes.append(mem2)
    return torch.stack(spikes), torch.stack(membranes)


def constant(net: Net, x: Tensor) -> Any:
    mem1, mem2, spikes = torch.zeros(len(x), 5), torch.zeros(len(x), 4), []
    for _ in range(net.steps):
        _, mem1, spk2, mem2 = step(net, x, mem1, mem2)
        spikes.append(spk2)
    return torch.stack(spikes, dim=1)


def batch_first(net: Net, x: Tensor) -> Any:
    mem1 = mem2 = None
    spikes = []
    for t in range(x.shape[1]):
        _, mem1, spk2, mem2 = step(net, x[:, t], mem1, mem2)
        spikes.append(spk2)
    return torch.cat(spikes, dim=1), spikes[-1], mem2


def iterated(net: Net, x: Tensor) -> Any:
    mem1 = mem2 = None
    spikes = []
    for x_t in x:
        _, mem1, spk2, mem2 = step(net, x_t, mem1, mem2)
        spikes.append(spk2)
    return {"list": spikes, "mean": sum(spikes) / 4}


def accumulated(net: Net, x: Tensor) -> Any:
    mem1 = mem2 = None
    total, fired, first = 0, torch.zeros(x.shape[1], 4), None
    for t in range(len(x)):
        spk1, mem1, spk2, mem2 = step(net, x[t], mem1, mem2)
        total = total + mem2
        fired += spk2
        first = spk1.sum(1) if first is None else torch.maximum(first, spk1.sum(1))
    return total / 4, fired / 4, first


def preallocated(net: Net, x: Tensor) -> Any:
    mem1 = mem2 = None
    spikes, ahead = torch.zeros(len(x), x.shape[1], 4), torch.zeros(len(x), x.shape[1])
    for t in range(len(x)):
        _, mem1, spk2, mem2 = step(net, x[t], mem1, mem2)
        spikes[t] = spk2
        ahead[t] = spikes[: t + 1].sum((0, 2))
    return spikes, ahead


def backwards(net: Net, x: Tensor) -> Any:
    mem1 = mem2 = None
    spikes = []
    for t in reversed(range(len(x))):
        _, mem1, spk2, mem2 = step(net, x[t], mem1, mem2)
        spikes.insert(0, spk2)
    return torch.stack(spikes)


def delayed(net: Net, x: Tensor) -> Any:
    """The second layer reads the first one's spikes of the step before: no loop, but other steps meet."""
    mem1 = mem2 = None
    before, spikes = torch.zeros(x.shape[1], 5), []
    for x_t in x:
        spk1, mem1 = net.lif1(net.fc1(x_t), mem1)
        spk2, mem2 = net.lif2(net.fc2(before), mem2)
        before = spk1
        spikes.append(spk2)
    return torch.stack(spikes)


def written_out(net: Net, x: Tensor) -> Any:
    """A neuron in the loop's own code, between one that is a module and a layer."""
    mem, v, spikes = None, torch.zeros(x.shape[1], 4), []
    for x_t in x:
        spk1, mem = net.lif1(net.fc1(x_t), mem)
        v = v / 2 + net.fc2(spk1)
        spk2 = (v >= 1).float()
        v = v - spk2
        spikes.append(F.relu(v, inplace=True) + spk2)
    return torch.stack(spikes)


def kept(net: Net, x: Tensor) -> Any:
    spikes = [net.lif2(net.fc2(net.lif1(net.fc1(x_t)))) for x_t in x]
    return torch.stack(spikes)


def started_anew(net: Net, x: Tensor) -> Any:
    reset(net)
    return kept(net, x)


def ended_anew(net: Net, x: Tensor) -> Any:
    spikes = kept(net, x)
    reset(net)
    return spikes


def without_gradient(net: Net, x: Tensor) -> Any:
    mem1 = mem2 = None
    spikes = []
    for x_t in x:
        with torch.no_grad():
            current = net.fc1(x_t)
        spk1, mem1 = net.lif1(current * x_t.detach().sum(1, keepdim=True), mem1)
        spk2, mem2 = net.lif2(net.fc2(spk1), mem2)
        spikes.append(spk2)
    return torch.stack(spikes)


def reshaped(net: Net, x: Tensor) -> Any:
    """Views, dimensions and broadcasting within a step."""
    mem1 = mem2 = None
    out = []
    for x_t in x:
        x_t = x_t.view(x_t.size(0), 2, 3).transpose(1, 2).flatten(1) * torch.arange(6.0)
        spk1, mem1 = net.lif1(net.fc1(x_t.unsqueeze(1).squeeze(1)), mem1)
        spk1 = torch.cat([spk1[:, :2], spk1[:, 2:]], dim=1) + spk1.mean(1, keepdim=True) * 5
        current = torch.matmul(spk1, net.fc2.weight.t()) + net.fc2.bias
        spk2, mem2 = net.lif2(current.reshape(len(current), -1), mem2)
        out.append(spk2.max(dim=1)[0] - spk2.softmax(-1).detach().round()[:, 0])
    return torch.stack(out)


def aliased(net: Net, x: Tensor) -> Any:
    """Writes through views, and reads of what was written to, before and after."""
    mem1 = mem2 = None
    total, early = torch.zeros(x.shape[1], 4), []
    rows = total.view(-1)
    for t in range(len(x)):
        x_t = x[t].clone()
        x_t += 1
        x_t[:, 0] = 0
        spk1, mem1 = net.lif1(net.fc1(x_t), mem1)
        current = net.fc2(spk1)
        before = current.detach().clone().sum(1)
        current[:, 1:] *= 2
        spk2, mem2 = net.lif2(current, mem2)
        early.append(before + total[:, 0].detach())
        total += spk2
        early.append(rows.view(-1, 4)[:, 0] * 1)
    return torch.stack(early), rows


def layer_by_layer(net: Net, x: Tensor) -> Any:
    """A loop for each layer, which only the last but one gets by a view of all steps."""
    mem, spikes = None, []
    for t in range(len(x)):
        spk, mem = net.lif1(net.fc1(x[t]), mem)
        spikes.append(spk)
    x, mem, spikes = torch.stack(spikes, 1), None, []
    for t in range(x.shape[1]):
        spk, mem = net.lif2(net.fc2(x.transpose(0, 1)[t]), mem)
        spikes.append(spk)
    return torch.stack(spikes).sum(1), mem


def unrolled(net: Net, x: Tensor) -> Any:
    """Several calls of one function per step, blocks in a loop, a step's number as a factor, zip."""
    mems, out = [None, None], 0
    weights = torch.arange(1.0, len(x) + 1)
    for t, (x_t, w) in enumerate(zip(x.split(1), weights, strict=True)):
        y = x_t.squeeze(0)
        for i, (fc, lif) in enumerate(((net.fc1, net.lif1), (net.fc2, net.lif2))):
            y, mems[i] = lif(F.relu(fc(y)) * 2 if t else F.relu(fc(y)), mems[i])
        out = out + y * w * (t + 1)
    return out


LOOPS = (
    aliased,
    layer_by_layer,
    unrolled,
    recorded,
    iterated,
    accumulated,
    preallocated,
    backwards,
    delayed,
    written_out,
    without_gradient,
    reshaped,
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


# What stands in the way


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
    looked_at: r"bool at test_convert_loops.py:\d+ reads the values of a tensor",
    drawn: r"random numbers of Python",
    seeding: r"seeds torch's random numbers",
    drawn_by_torch: r"item at test_convert_loops.py:\d+ reads the values",
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
