"""What a recorded pass is made of: calls, the tensors that they are given, and nests of both."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ...structure.tracing import leaves

__all__ = [
    "Constant",
    "Held",
    "Input",
    "LoopError",
    "Node",
    "Ref",
    "Slot",
    "Source",
    "StepNeuron",
    "TensorObject",
    "alike",
    "filled",
    "leaves_and_slots",
    "mapped",
    "slots_of",
    "words",
]


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


class LoopError(ValueError):
    """A loop that can't be turned inside out; says what stands in the way, and where."""


class StepNeuron(Protocol):
    """Runs one neuron module, which takes one step per call, over all steps."""

    def all_steps(self, module: nn.Module, currents: Tensor, *states: Any) -> Any:
        """What T calls of the module return, in the structure of one, each tensor with a leading T.

        A module that keeps its state inside is left with that of the last step.

        A parameter ``needed``, if there is one, gets for each tensor of the result "all", "last" or "none": of one of
        which the last step alone is read, that one, [1, ...], will do; None in place of one that nobody reads.

        Args:
            module: the neuron.
            currents: its inputs [T, N, ...]; the same for all steps where their first stride is 0.
            states: the further arguments of its first call.
        """
        ...


# What a recorded call is given.


class Ref(NamedTuple):
    """A tensor that a recorded call gave."""

    node: int
    output: int


class Input(NamedTuple):
    """A tensor among the arguments of forward."""

    index: int


@dataclass(frozen=True)
class Held:
    """A tensor that a module holds: it is looked up at each pass."""

    module: nn.Module
    path: tuple[Any, ...]

    def look_up(self) -> Tensor:
        value: Any = vars(self.module)
        for key in self.path:
            value = value[key]
        return value


@dataclass(frozen=True)
class Constant:
    """A tensor that lived before the pass, in a global, say."""

    identity: int
    tensor: Tensor = field(compare=False)


class Slot(NamedTuple):
    """The place of a tensor in a nest."""

    index: int


Source = Ref | Input | Held | Constant


class TensorObject(NamedTuple):
    """One tensor object of the recorded pass, and the memory it shows."""

    number: int
    storage: int
    is_new: bool  # made by a recorded call


@dataclass(eq=False)
class Node:
    """One recorded call: of a layer, a neuron, or a function of torch."""

    index: int
    name: str
    what: str
    target: Callable
    module: nn.Module | None
    site: Hashable
    args: tuple
    kwargs: dict
    sources: list[Source]
    read: list[TensorObject]
    shapes: list[torch.Size]
    result: Any
    given: list[TensorObject]
    specs: list[tuple[torch.Size, torch.dtype]]
    changed: list[int]  # which of the tensors that it was given it wrote to
    unreturned: list[int]  # which of these are not in its result
    grad: bool | None  # other than around the pass
    is_constant: bool
    made: int  # how many tensor objects there were before
    clone: bool = False  # instead of writing to its first argument, write to a copy of it

    def run(self, values: Sequence[Any], arguments: tuple[tuple, dict] | None = None) -> list[Any]:
        """The tensors of the result, and then those that it wrote to and did not return."""
        if self.clone:
            values = [values[0].clone(), *values[1:]]
        args, kwargs = filled((self.args, self.kwargs) if arguments is None else arguments, values)
        with self.gradients():
            result = self.target(*args, **kwargs)
        return [x for x in leaves(result) if isinstance(x, Tensor)] + [values[i] for i in self.unreturned]

    def gradients(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self.grad is None else torch.set_grad_enabled(self.grad)


def filled(nest: Any, values: Sequence[Any]) -> Any:
    return mapped(nest, lambda leaf: values[leaf.index] if type(leaf) is Slot else leaf)


def mapped(nest: Any, function: Callable[[Any], Any]) -> Any:
    """The same nest of tuples, lists, dicts and slices, with the function of each leaf."""
    if type(nest) is Slot:
        return function(nest)
    if isinstance(nest, tuple | list):
        items = [mapped(item, function) for item in nest]
        return type(nest)(*items) if hasattr(nest, "_fields") else type(nest)(items)
    if isinstance(nest, dict):
        return type(nest)((key, mapped(item, function)) for key, item in nest.items())
    if isinstance(nest, slice):
        return slice(*(mapped(item, function) for item in (nest.start, nest.stop, nest.step)))
    return function(nest)


def slots_of(nest: Any) -> list[int]:
    return [leaf.index for leaf in leaves_and_slots(nest) if type(leaf) is Slot]


def leaves_and_slots(nest: Any) -> list[Any]:
    """As :func:`leaves`, of which a slot is one."""
    found: list[Any] = []
    mapped(nest, found.append)
    return found


def alike(a: Any, b: Any) -> bool:
    """Whether two nests have the same structure and, beside tensors, the same leaves."""
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, slice):
        return all(map(alike, (a.start, a.stop, a.step), (b.start, b.stop, b.step)))
    return a is b or (isinstance(a, (int, float, complex, str, torch.dtype, torch.device)) and a == b)
