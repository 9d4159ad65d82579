"""A training step with each private name of torch missing in turn, as JSON: a program of ``test_private_names.py``.

Names are looked up when the package is imported, and operators are registered once per process: each purpose has a
process of its own, forked from one that has imported torch alone.
"""

from __future__ import annotations

import contextlib
import json
import operator
import os
import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Watch(TorchDispatchMode):
    """Sees every operator, so that ours come through the dispatcher."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def missing(names: tuple[str, ...]) -> None:
    """Have torch lack these, for whoever asks by name; torch itself goes on with what it has."""
    found = operator.attrgetter

    class Attrgetter:
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, of: object) -> object:
            if of is torch and self.name in names:
                raise AttributeError(f"torch has no {self.name}")
            return found(self.name)(of)

    operator.attrgetter = Attrgetter


def step() -> dict[str, object]:
    """Two training steps of a small network, the second one watched, and what comes of them."""
    from sca_kernels import nn, torch_private
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
    model[1].activity = nn.Activity()
    x = torch.randn(4, 3, 2, 6, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for context in (contextlib.nullcontext(), Watch()):
        with context:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    told = {name: z.double().tolist() for name, z in model.state_dict().items()}
    told |= {f"{name}.grad": p.grad.double().tolist() for name, p in model.named_parameters()}
    activity = model[1].activity
    told |= {"spike_count": activity.spike_count.tolist(), "membrane_l1": activity.membrane_l1.tolist()}
    told |= {"calls": sorted(name for backend in registry().values() for name in backend.calls)}
    return told | {"lacks": [purpose for purpose in torch_private.PRIVATE if torch_private.found(purpose) is None]}


def apart(names: tuple[str, ...]) -> dict[str, object]:
    """:func:`step` in a process without these."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            missing(names)
            result = step()
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
    purposes = json.load(sys.stdin)
    json.dump({purpose: apart(tuple(names)) for purpose, names in purposes.items()}, sys.stdout)
