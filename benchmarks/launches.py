"""Kernels that a GPU is asked to start: counted, and a table of those of convolutions.

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
from sca_kernels import ops

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
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    mode = _Operators(Counter())
    originals = {kind: kind.run for kind in (JITFunction, InterpretedFunction)}
    try:
        for kind, run in originals.items():
            kind.run = mode.watching(run)
        with mode:
            yield mode.seen
    finally:
        for kind, run in originals.items():
            kind.run = run


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


def table(device: str) -> str:
    """Of all cases, in Markdown."""
    lines = ["| convolution | forward | backward | both | started |", "| --- | --- | --- | --- | --- |"]
    for name, case in CONVOLUTIONS.items():
        passes = convolution(device, **case)
        forward, backward = (sum(each.values()) for each in passes)
        named = "; ".join(", ".join(f"{kernel} {n}" for kernel, n in each.items()) for each in passes)
        lines.append(f"| {name} | {forward} | {backward} | {forward + backward} | {named} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table("cuda" if torch.cuda.is_available() else "cpu"))
