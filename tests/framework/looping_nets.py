"""Networks of two neurons that loop over time as users write it, and how a folded one is compared with its loop.

Weights, inputs and decays are on a grid, so that sums are exact in any order and equality can be exact.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sca.convert.loops import Folded, fold

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
