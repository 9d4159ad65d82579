"""Kernels that a GPU is asked to start: counted, and tables of those of convolutions and neurons.

Counted are Triton's launches and torch's operators that compute; views and empty tensors start nothing. One operator is
one launch, but for convolutions: a forward pass with a bias adds that by another, and a backward pass starts one per
gradient that is needed. What a library starts inside of these is not seen.

``python -m benchmarks.launches`` prints the table: on a GPU, or with TRITON_INTERPRET=1 on the CPU, whose numbers are
the same.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sca_kernels import functional as F
from sca_kernels import nn, ops
from sca_kernels.gpu import plan

_STARTS_NOTHING = ("empty", "new_empty", "_local_scalar_dense", "is_pinned", "_unsafe_view", "_reshape_alias")


class _Operators(TorchDispatchMode):
    """Counts torch's operators, within ours, too, and Triton's launches."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self.seen, self.interpreting = seen, False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.interpreting:  # a kernel by torch's operators
            return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        with self:
            if func.namespace == "sca_kernels":
                return getattr(ops, name).filled(*args)
            out = func.decompose(*args, **kwargs)
        if out is NotImplemented:  # not made of others
            out = func(*args, **kwargs)
            if launches := _launches(func, name, args, out):
                self.seen[name] += launches
        return out

    def apart(self, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """What makes tensors, not counted."""

        def made(*args):
            self.interpreting, before = True, self.interpreting
            try:
                return make(*args)
            finally:
                self.interpreting = before

        return made

    def watching(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """What launches a kernel, counted."""

        def launch(kernel, *args, **kwargs):
            self.seen[kernel.fn.__name__] += 1
            self.interpreting = True
            try:
                return run(kernel, *args, **kwargs)
            finally:
                self.interpreting = False

        return launch


def _launches(func: Any, name: str, args: tuple[Any, ...], out: Any) -> int:
    """Of one call of an operator of torch."""
    returns = func._schema.returns
    is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    if is_view or name.startswith(_STARTS_NOTHING) or (isinstance(out, Tensor) and not out.numel()):
        return 0
    if name == "convolution_backward":
        return sum(args[-1])
    return 2 if name == "convolution" and args[2] is not None else 1


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """What is started within, by the name of the kernel or the operator."""
    from triton.runtime.interpreter import GridExecutor
    from triton.runtime.jit import JITFunction

    mode = _Operators(Counter())
    originals = {(JITFunction, "run"): JITFunction.run, (GridExecutor, "__call__"): GridExecutor.__call__}
    zeros = plan._counters
    try:
        plan._counters = mode.apart(zeros)  # made once per stream on a GPU, per launch where kernels are interpreted
        for (kind, name), run in originals.items():
            setattr(kind, name, mode.watching(run))
        with mode:
            yield mode.seen
    finally:
        plan._counters = zeros
        for (kind, name), run in originals.items():
            setattr(kind, name, run)


CONVOLUTIONS = {
    "gathered": {},
    "gathered, autocast": {"autocast": True},
    "gathered, bias": {"bias": True},
    "gathered, bias, autocast": {"bias": True, "autocast": True},
    "gathered, bits": {"bits": True},
    "gathered, channels_last weight": {"last": True},
    "gathered, outputs alone": {"inputs": False},
    "depthwise": {"depthwise": True},
    "all channels": {"inputs": False, "outputs": False},
    "all channels, autocast": {"inputs": False, "outputs": False, "autocast": True},
    "implicit": {"path": "implicit"},
    "implicit, autocast": {"path": "implicit", "autocast": True},
}
"""Cases by name, see :func:`convolution`."""


def convolution(
    device: str = "cpu",
    inputs: bool = True,
    outputs: bool = True,
    bias: bool = False,
    bits: bool = False,
    autocast: bool = False,
    last: bool = False,
    depthwise: bool = False,
    path: str = "gathered",
) -> tuple[Counter[str], Counter[str]]:
    """Launches of a 3x3 convolution of 8 of 16 channels on the backend ``triton``, forward and backward.

    Args:
        inputs, outputs: whether there is a list of channels on that side.
        bits: whether the input is kept as bits.
        autocast: whether a float32 weight meets an input in bfloat16.
        last: whether the weight is in channels_last.
    """
    some = torch.arange(0, 16, 2, device=device)
    columns, rows = some if inputs else None, some if outputs else None
    weight = torch.randn(16, 1 if depthwise else 16, 3, 3, device=device)
    weight = weight.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format).requires_grad_()
    x = torch.ones(2, 8 if inputs else 16, 6, 6, device=device, dtype=torch.bfloat16 if autocast else torch.float32)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    added = torch.randn(16, device=device, requires_grad=True) if bias else None
    leaves = [x, weight, *([added] if bias else [])]
    for _ in range(2):  # the first call may start what is kept
        with counted() as forward, torch.autocast(device, dtype=torch.bfloat16, enabled=autocast):
            y = F.channel_conv2d(
                x,
                weight,
                added,
                padding=1,
                groups=16 if depthwise else 1,
                in_channels=columns,
                out_channels=rows,
                spike_input=bits,
                backend="triton",
                path=path,
            )
    grad = torch.ones_like(y)
    with counted() as backward:
        torch.autograd.grad(y, leaves, grad)
    return forward, backward


NEURONS = {
    "LIF": {"kind": "LIF", "norm": False},
    "BN + LIF": {},
    "BN + LIF, all channels": {"listed": False},
    "BN + LIF, cumulative average": {"momentum": None},
    "BN + PLIF": {"kind": "PLIF"},
    "BN + LIF, eval": {"training": False},
    "conv + BN + LIF": {"convolution": True},
    "conv + BN + LIF, bfloat16": {"convolution": True, "autocast": True},
}
"""Cases by name, see :func:`neuron`."""


def neuron(
    device: str = "cpu",
    kind: str = "LIF",
    norm: bool = True,
    listed: bool = True,
    momentum: float | None = 0.1,
    training: bool = True,
    convolution: bool = False,
    autocast: bool = False,
) -> tuple[Counter[str], Counter[str]]:
    """Launches of a layer of 16 neurons that records its activity, forward and backward (without gradient in eval
    mode).

    Args:
        norm: whether it is behind a fused batch norm, whose running statistics move with that momentum.
        listed: whether 8 of the 16 channels are active.
        convolution: whether a convolution is in front.
    """
    groups = [nn.ChannelGroup(16) for _ in range(2)] if listed else [None, None]
    for group in groups if listed else []:
        group.set_active(range(0, 16, 2))
    options = {"group": groups[1], "backend": "triton"}
    layer = getattr(nn, f"BatchNorm{kind}")(16, momentum=momentum, **options) if norm else getattr(nn, kind)(**options)
    layers = torch.nn.ModuleList([layer]).to(device).train(training)
    layer.activity = nn.Activity()
    if convolution:
        made = nn.ChannelConv2d(16, 16, 3, padding=1, bias=False, in_group=groups[0], out_group=groups[1])
        made.backend, made.spike_input = "triton", False
        layers.insert(0, made.to(device))
    x = torch.randn(4, 2, 8 if listed else 16, 6, 6, device=device, dtype=torch.bfloat16 if autocast else torch.float32)
    x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last).unflatten(0, (4, 2)).requires_grad_(training)
    for _ in range(2):  # the first call makes what is kept
        # Potentials are looked for NaN on CPUs alone.
        with (
            F.check_nan(False),
            counted() as forward,
            torch.set_grad_enabled(training),
            torch.autocast(device, dtype=torch.bfloat16, enabled=autocast),
        ):
            y = x
            for layer in layers:
                y = layer(y)
    grad = torch.ones_like(y)
    with counted() as backward:
        if training:
            torch.autograd.grad(y, [x, *layers.parameters()], grad)
    return forward, backward


def table(device: str) -> str:
    """Of all cases, in Markdown."""
    lines = ["| layer | forward | backward | both | started |", "| --- | --- | --- | --- | --- |"]
    cases = [(name, convolution, case) for name, case in CONVOLUTIONS.items()]
    cases += [(name, neuron, case) for name, case in NEURONS.items()]
    for name, count, case in cases:
        passes = count(device, **case)
        forward, backward = (sum(each.values()) for each in passes)
        named = "; ".join(", ".join(f"{kernel} {n}" for kernel, n in each.items()) for each in passes)
        lines.append(f"| {name} | {forward} | {backward} | {forward + backward} | {named} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table("cuda" if torch.cuda.is_available() else "cpu"))
