"""What modules hold, in attributes and in nested containers, to be put back after a pass through them."""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Snapshot"]

# what holds nothing that a pass could change
_CONSTANT = (str, bytes, int, float, complex, type, types.ModuleType, types.BuiltinFunctionType)


class Snapshot:
    """What modules hold now: their attributes; what dicts, lists, sets, tuples and dataclasses in these hold, at any
    depth; the values of tensors that are no parameters; the states of torch's random generators.

    Args:
        modules: whose attributes to remember.
        objects: whether to look into all other objects and the closures of functions, too. What a pass of the model
            alone changed, that puts back; where the caller's code runs as well, objects such as loaders must keep what
            they did.

    Attributes:
        tensors: those that were found, parameters left out.
    """

    def __init__(self, modules: Iterable[nn.Module], objects: bool = False) -> None:
        modules = list(modules)
        self.tensors: list[Tensor] = []
        self._objects = objects
        self._buffers = {id(buffer) for module in modules for buffer in module.buffers(recurse=False)}
        self._undo: list[Callable[[], None]] = []
        seen: dict[int, object] = {}  # held, so that no other object gets their identity
        stack: list[object] = modules
        while stack:
            value = stack.pop()
            if id(value) not in seen and not isinstance(value, _CONSTANT):
                seen[id(value)] = value
                stack += self._remember(value)

    def restore(self) -> None:
        """Put everything back, identities and contents; what did not change is not touched, but for buffers."""
        for undo in self._undo:
            undo()

    def _remember(self, value: Any) -> Iterator[object]:
        """Note what there is to undo for one object; what it holds."""
        if isinstance(value, Tensor):
            if isinstance(value, nn.Parameter):
                return
            self.tensors.append(value)
            if value.layout is torch.strided:
                self._later(_restore_tensor, value, value.detach().clone(), id(value) in self._buffers)
        elif isinstance(value, torch.Generator):
            self._later(torch.Generator.set_state, value, value.get_state())
        elif isinstance(value, dict):
            self._later(_restore_dict, value, dict(value))
            yield from value.values()
        elif isinstance(value, list | deque):
            self._later(_restore_sequence, value, list(value))
            yield from value
        elif isinstance(value, set):
            self._later(_restore_set, value, set(value))
            yield from value
        elif isinstance(value, tuple | frozenset):
            yield from value
        elif self._objects and isinstance(value, types.FunctionType):
            for cell in value.__closure__ or ():
                yield from self._remember_attribute(cell, types.CellType.cell_contents)
        elif self._objects and isinstance(value, types.MethodType):
            yield value.__self__
        elif self._objects and isinstance(value, functools.partial):
            yield from (value.func, value.args, value.keywords)
        elif self._objects or isinstance(value, nn.Module) or is_dataclass(value):
            for kind in type(value).__mro__:
                for slot in vars(kind).values() if "__slots__" in vars(kind) else ():
                    if isinstance(slot, types.MemberDescriptorType):
                        yield from self._remember_attribute(value, slot)
            with_attributes = next((kind for kind in type(value).__mro__ if "__dict__" in vars(kind)), None)
            if with_attributes is not None:
                yield vars(value)

    def _remember_attribute(self, value: object, descriptor: Any) -> Iterator[object]:
        """The same for a slot or a closure's cell."""
        try:
            content = descriptor.__get__(value)
        except (AttributeError, ValueError):  # empty
            return
        self._later(_restore_attribute, value, descriptor, content)
        yield content

    def _later(self, function: Callable, *arguments: Any) -> None:
        self._undo.append(functools.partial(function, *arguments))


@torch.no_grad()
def _restore_tensor(value: Tensor, content: Tensor, is_buffer: bool) -> None:
    # A buffer is written unseen, which waits for no device; other tensors may be saved for a backward pass.
    if not value.is_meta and (is_buffer or _differ(value, content)):
        with torch.inference_mode(value.is_inference()):
            value.detach().copy_(content)


def _differ(value: Tensor, content: Tensor) -> bool:
    try:
        return not torch.equal(value, content)
    except RuntimeError:  # of a dtype that torch can't compare
        return True


def _restore_dict(value: dict, content: dict) -> None:
    if list(map(id, value)) != list(map(id, content)) or any(value[key] is not content[key] for key in content):
        value.clear()
        value.update(content)


def _restore_sequence(value: list | deque, content: list) -> None:
    if list(map(id, value)) != list(map(id, content)):
        value.clear()
        value.extend(content)


def _restore_set(value: set, content: set) -> None:
    if set(map(id, value)) != set(map(id, content)):
        value.clear()
        value.update(content)


def _restore_attribute(value: object, descriptor: Any, content: object) -> None:
    try:
        if descriptor.__get__(value) is content:
            return
    except (AttributeError, ValueError):  # it was deleted
        pass
    descriptor.__set__(value, content)
