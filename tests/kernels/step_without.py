"""A training step, and what else private names of torch serve, with each of them missing in turn, as JSON: a program
of ``test_private_names.py``.

Names are looked up when the package is imported, and operators are registered once per process: each purpose has a
process of its own, forked from one that has imported torch alone, with its compiler.
"""

from __future__ import annotations

import contextlib
import json
import operator
import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint


class Watch(TorchDispatchMode):
    """Sees every operator, so that ours come through the dispatcher."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Double(torch.nn.Module):
    """Torch compiles none of its own modules by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x


COMPILED_CALL = "_compiled_call_impl"


def missing(names: tuple[str, ...]) -> None:
    """Have torch lack these, for whoever asks by name; torch itself goes on with what it has."""
    if f"nn.Module.{COMPILED_CALL}" in names:  # of this one modules are asked
        rename_compiled_call()
    found = operator.attrgetter

    class Attrgetter:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, of: object) -> object:
            if of is torch and self.name in names:
                raise AttributeError(f"torch has no {self.name}")
            return found(self.name)(of)

    operator.attrgetter = Attrgetter


def rename_compiled_call() -> None:
    """Have ``module.compile()`` and calls of a module keep compiled code under another name."""

    def compile(module, **options):
        module._renamed = torch.compile(module._call_impl, **options)

    def call(module, *args, **kwargs):
        return (vars(module).get("_renamed") or module._call_impl)(*args, **kwargs)

    delattr(torch.nn.Module, COMPILED_CALL)
    torch.nn.Module.compile, torch.nn.Module.__call__ = compile, call


def everything() -> dict[str, object]:
    """What comes of all that the names serve."""
    from sca_kernels import torch_private

    told = {"step": step(), "checkpointed": checkpointed(), **derivatives(), "taken back": taken_back()}
    return told | {"lacks": [purpose for purpose in torch_private.PRIVATE if torch_private.found(purpose) is None]}


def step() -> dict[str, object]:
    """Two training steps of a small network, the second one watched, and what comes of them."""
    from sca_kernels import nn
    from sca_kernels.backends import registry

    torch.manual_seed(0)
    group = nn.ChannelGroup(16, "g")
    group.set_active(range(0, 16, 2))
    model = torch.nn.Sequential(
        nn.ChannelConv2d(2, 16, 3, padding=1, bias=False, out_group=group),
        nn.BatchNormLIF(16, group=group),
        nn.ChannelConv2d(16, 8, 3, padding=1, in_group=group, spike_input=True),
        nn.ChannelBatchNorm2d(8),
        nn.PLIF(channels=8),
    )
    model[1].activity, model[4].activity = nn.Activity(), nn.Activity()
    x = torch.randn(4, 3, 2, 6, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for context in (contextlib.nullcontext(), Watch()):
        with context:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    told = {name: z.double().tolist() for name, z in model.state_dict().items()}
    told |= {f"{name}.grad": p.grad.double().tolist() for name, p in model.named_parameters()}
    told |= {f"{at}.activity": sums(model[at].activity) for at in (1, 4)}
    return told | {"calls": sorted(name for backend in registry().values() for name in backend.calls)}


def sums(activity) -> list[list[float]]:
    return [z.tolist() for z in (activity.spike_count, activity.membrane_l1, activity.positions)]


def checkpointed() -> dict[str, object]:
    """What a pass that is repeated in the backward pass leaves."""
    from sca_kernels import nn

    torch.manual_seed(0)
    layer = nn.BatchNormLIF(3)
    layer.activity = nn.Activity()
    checkpoint(layer, torch.randn(4, 2, 3, 5).requires_grad_(), use_reentrant=False).sum().backward()
    return {"activity": sums(layer.activity), "running_mean": layer.running_mean.tolist()}


def derivatives() -> dict[str, object]:
    """Gradients within a transform of torch.func, and of gradients, or why there are none."""
    from sca_kernels import functional as F

    torch.manual_seed(0)
    current, frames, weight = torch.randn(4, 2, 3, 5), torch.randn(2, 2, 6, 6), torch.randn(3, 4, 3, 3)
    active, factors = torch.tensor([0, 2]), torch.arange(5)

    def fired(x: Tensor) -> Tensor:
        return (F.lif(x).spikes * factors).sum()

    def convolved(x: Tensor) -> Tensor:
        return F.channel_conv2d(x, weight, in_channels=active).pow(3).sum()

    def again() -> Tensor:
        x = frames.clone().requires_grad_()
        with Watch():
            (grad,) = torch.autograd.grad(convolved(x), x, create_graph=True)
            return torch.autograd.grad(grad.square().sum(), x)[0]

    return {
        "neuron in a transform": outcome(lambda: torch.func.grad(fired)(current)),
        "convolution in a transform": outcome(lambda: torch.func.grad(convolved)(frames)),
        "second derivative": outcome(again),
    }


def outcome(derivative: Callable[[], Tensor]) -> list | str:
    try:
        return derivative().tolist()
    except RuntimeError as error:
        return str(error)


def taken_back() -> int:
    """How often compiled code runs once it is taken from a module that was compiled in place."""
    from sca_kernels.torch_private import compiled_call, set_compiled_call

    ran = []

    def backend(graph, inputs):
        return lambda *args: ran.append(graph) or graph(*args)

    module = Double()
    module.compile(backend=backend)
    module(torch.ones(3))
    assert len(ran) == 1
    if compiled_call(module) is not None:
        set_compiled_call(module, None)
    module(torch.ones(3))
    return len(ran) - 1


def apart(names: tuple[str, ...]) -> dict[str, object]:
    """:func:`everything` in a process without these."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            missing(names)
            result = everything()
        except BaseException as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        with os.fdopen(writer, "w") as pipe:
            json.dump(result, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = json.load(pipe)
    os.wait()
    return told


if __name__ == "__main__":
    import torch._dynamo  # before processes are forked, so that they need not load it one by one

    purposes = json.load(sys.stdin)
    json.dump({purpose: apart(tuple(names)) for purpose, names in purposes.items()}, sys.stdout)
