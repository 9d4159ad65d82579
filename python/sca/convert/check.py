"""Whether a converted network is the original: passes of both, compared value by value."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sca_kernels import nn as snn
from sca_kernels.nn.neuron import NeuronModule

from ..structure.snapshot import Snapshot
from ..structure.untouched import untouched
from .report import Parity

__all__ = ["Difference", "compare", "kept_for_backward", "outputs_of"]

FLIPPED = 1e-4
"""The share of spikes that rounding may flip where layers are ours, too: their sums have another order."""
_FLOAT32, _FLOAT64 = 1e-5, 1e-9
"""Largest difference, relative to the largest value, of outputs and gradients."""
_ROUNDING = 0.05
"""Largest difference in float32 that float64 may tell to be rounding: of a surrogate with an edge, rounding moves
potentials from one side of it to the other."""
_HALF = (torch.bfloat16, torch.float16)


class Difference(NamedTuple):
    """The first thing in which two networks differ: where, and how; whether it may be rounding, which float64 tells."""

    name: str
    text: str
    is_rounding: bool = False


class _Pass(NamedTuple):
    """What one pass gave: outputs, spikes by neuron, gradients, buffers."""

    outputs: list[Tensor]
    spikes: dict[str, Tensor]
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def compare(
    original: nn.Module,
    converted: nn.Module,
    inputs: tuple[Any, ...],
    neurons: Iterable[str],
    reset: Callable[[nn.Module], None],
    same_layers: bool,
    unheard: bool = False,
) -> tuple[Parity, Difference | None]:
    """Passes in training and in evaluation, each twice without a reset between and once after one.

    Args:
        original, converted: are left as they were; of both, copies run.
        neurons: names of the converted ones.
        reset: forgets the states of a network.
        same_layers: whether layers and roundings are the original's: then spikes must be the same in float32.
        unheard: whether the converted neurons' hooks are not called, so that outputs alone can be compared.
    """
    if any(x.dtype in _HALF for x in (*outputs_of(inputs), *original.parameters())):
        original, converted = copy.deepcopy(original).float(), copy.deepcopy(converted).float()
        inputs = tuple(x.float() if isinstance(x, Tensor) and x.dtype in _HALF else x for x in inputs)
    flipped = 0.0 if same_layers else FLIPPED
    neurons = () if unheard else tuple(neurons)
    parity, found = _in_dtype(original, converted, inputs, neurons, reset, None, flipped, _FLOAT32)
    exact = None
    try:
        doubled = tuple(x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)
        pair = copy.deepcopy(original).double(), copy.deepcopy(converted).double()
        for module in pair[1].modules():  # by name: that no other one takes float64 would be logged
            if isinstance(module, NeuronModule):
                module.arguments = module.arguments | {"backend": "reference"}
            elif isinstance(module, snn.ChannelConv2d):
                module.backend = "reference"
        # Code that computes in float32 whatever it is given is no worse there.
        bound = _FLOAT64 if found is not None or parity.differ else _FLOAT32
        in_double, differs = _in_dtype(*pair, doubled, neurons, reset, torch.float64, 0.0, bound)
        exact = max(in_double.output, in_double.gradients, in_double.differ / max(in_double.spikes, 1))
        found = differs if found is None or found.is_rounding else found
    except (RuntimeError, TypeError):  # code that makes float32 tensors of its own
        pass
    return parity._replace(exact=exact), found


def _in_dtype(
    original: nn.Module,
    converted: nn.Module,
    inputs: tuple[Any, ...],
    neurons: Iterable[str],
    reset: Callable[[nn.Module], None],
    dtype: torch.dtype | None,
    flipped: float,
    bound: float,
) -> tuple[Parity, Difference | None]:
    spikes = differ = 0
    silent = dict.fromkeys(neurons, True)
    worst = {"output": 0.0, "gradients": 0.0, "buffers": 0.0}
    found: Difference | None = None
    for training in (True, False):
        both = [_passes(original, inputs, neurons, reset, training)]
        try:
            both.append(_passes(converted, inputs, neurons, reset, training))
        except (ValueError, TypeError, RuntimeError, IndexError) as error:
            text = f"the converted network fails: {type(error).__name__}: {error}"
            return Parity(0, 0, (), *[math.inf] * 3, "float32", None), Difference("", text)
        for before, after in zip(*both, strict=True):
            flips = 0
            for name, theirs in before.spikes.items():
                ours = after.spikes.get(name)
                if ours is None or ours.shape != theirs.shape:
                    found = found or Difference(name, f"it gives {_shape(ours)}, the original {_shape(theirs)}")
                    continue
                changed = int((ours != theirs).sum())
                flips += changed
                spikes, differ = spikes + theirs.numel(), differ + changed
                rate = float(theirs.double().mean()) if theirs.numel() else 0.0
                silent[name] = silent[name] and rate in (0.0, 1.0)
                if changed > flipped * theirs.numel() and found is None:
                    step = int((ours != theirs).flatten(1).any(1).nonzero()[0]) if ours.dim() > 1 else 0
                    mode = "training" if training else "evaluation"
                    found = Difference(
                        name, f"{changed} of {theirs.numel()} spikes differ in {mode}, first at step {step}"
                    )
            if flips and dtype != torch.float64:
                continue  # behind a spike that rounding has flipped everything differs, and float64 tells
            for kind in ("outputs", "gradients", "buffers"):
                off, name = _largest(getattr(before, kind), getattr(after, kind))
                key = "output" if kind == "outputs" else kind
                worst[key] = max(worst[key], off)
                if not off <= bound and found is None:
                    text = f"{kind} differ by {off:.1e} of the largest value (at most {bound:g})"
                    found = Difference(str(name), text, is_rounding=off <= _ROUNDING)
    quiet = tuple(name for name, is_silent in silent.items() if is_silent)
    return Parity(
        spikes, differ, quiet, *worst.values(), str(dtype or torch.float32).removeprefix("torch."), None
    ), found


def _shape(x: Tensor | None) -> str:
    return "nothing" if x is None else str(list(x.shape))


def _largest(before: Any, after: Any) -> tuple[float, Any]:
    """Largest difference relative to the largest value of all, and where it is."""
    pairs = before.items() if isinstance(before, dict) else enumerate(before)
    scale = (
        max((float(z.detach().abs().max()) for _, z in pairs if z.numel() and z.is_floating_point()), default=0.0)
        or 1.0
    )
    worst, where = 0.0, ""
    pairs = before.items() if isinstance(before, dict) else enumerate(before)
    for name, z in pairs:
        other = after.get(name) if isinstance(after, dict) else (after[name] if name < len(after) else None)
        if other is None or other.shape != z.shape:
            return math.inf, name
        off = float((z.detach().double() - other.detach().double()).abs().max()) / scale if z.numel() else 0.0
        if not off <= worst:
            worst, where = off, name
    return worst, where


def _passes(
    model: nn.Module,
    inputs: tuple[Any, ...],
    neurons: Iterable[str],
    reset: Callable[[nn.Module], None],
    training: bool,
) -> list[_Pass]:
    """Three passes of a copy: a first one, one without a reset before, one with."""
    copied = copy.deepcopy(model).train(training)
    reset(copied)
    afresh = Snapshot(copied.modules())  # whatever keeps states, and however it forgets them
    names = dict(copied.named_modules())
    found: dict[str, Tensor] = {}
    hooks = [names[name].register_forward_hook(_keeper(found, name)) for name in neurons]
    made = []
    with untouched(model), torch.enable_grad():
        for again in range(3):
            if again == 2:
                afresh.restore()
                reset(copied)
            torch.manual_seed(again)
            copied.zero_grad()
            found.clear()
            given = [
                x.detach().clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else copy.copy(x)
                for x in inputs
            ]
            # no leaves, which code that writes into its input could not take
            outputs = list(outputs_of(copied(*(x.clone() if isinstance(x, Tensor) else x for x in given))))
            gradients = {}
            if any(y.requires_grad for y in outputs):
                generator = torch.Generator().manual_seed(again)
                loss = sum(
                    (y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)).sum()
                    for y in outputs
                    if y.requires_grad
                )
                loss.backward(retain_graph=again == 0)
                gradients = {name: p.grad.clone() for name, p in copied.named_parameters() if p.grad is not None}
                gradients |= {
                    f"input {i}": x.grad for i, x in enumerate(given) if isinstance(x, Tensor) and x.grad is not None
                }
            buffers = {name: z.clone() for name, z in copied.named_buffers() if z.is_floating_point()}
            made.append(_Pass([y.detach() for y in outputs], dict(found), gradients, buffers))
    for hook in hooks:
        hook.remove()
    return made


def _keeper(found: dict[str, Tensor], name: str) -> Callable[..., None]:
    def keep(module: nn.Module, arguments: Any, output: Any) -> None:
        spikes = next(iter(outputs_of(output)), None)
        if spikes is not None:
            spikes = spikes.detach()
            found[name] = torch.cat([found[name], spikes]) if name in found else spikes

    return keep


def outputs_of(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a network returns."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from outputs_of(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from outputs_of(item)


def kept_for_backward(model: nn.Module, inputs: tuple[Any, ...], reset: Callable[[nn.Module], None]) -> float:
    """MiB that a training pass keeps for its backward pass, parameters aside; of a copy, which a reset precedes."""
    copied = copy.deepcopy(model).train()
    reset(copied)
    own = {p.untyped_storage().data_ptr() for p in copied.parameters()}
    sizes: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x

    def given() -> tuple[Any, ...]:
        return tuple(x.detach().clone() if isinstance(x, Tensor) else x for x in inputs)

    with untouched(model), torch.enable_grad():
        copied(*given())  # a folded network looks at its first pass twice
        reset(copied)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            held = copied(*given())  # while the graph lives, no memory is used twice
        total = sum(sizes.values()) / 2**20
        del held
    return total
