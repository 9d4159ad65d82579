"""Modules that become objects of another class in place: parameters, buffers, hooks, modes and whoever holds them
stay."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

__all__ = ["Swap", "own_attributes"]

_ABSENT = object()


class Swap:
    """One module that has become an object of a class of ours, and how it was.

    Args:
        module: is changed at once.
        kinds: the classes that it becomes an object of, in front of its own, which stays the last: isinstance() goes on
            to find it.
        attributes: what those need in the module.
        memories: names of dicts that the module holds, and the keys that are taken out of these.

    What the module holds under the name of a method of ours would hide that: it is set aside.
    """

    def __init__(
        self,
        module: nn.Module,
        kinds: tuple[type, ...],
        attributes: Mapping[str, Any],
        memories: Iterable[tuple[str, str]] = (),
    ) -> None:
        self.module, self.kind = module, type(module)
        held = vars(module)
        ours = {name for kind in kinds for name in dir(kind)} - set(dir(nn.Module))
        self._shadows = {name: held.pop(name) for name in ours & held.keys() - attributes.keys()}
        self._before = {name: held.get(name, _ABSENT) for name in attributes}
        self._taken = [(held[name], key, held[name].pop(key)) for name, key in memories if key in held.get(name, ())]
        module.__class__ = joined(kinds, self.kind)
        held.update(attributes)

    def revert(self) -> None:
        """Make it what it was; a state that it held since is lost."""
        held = vars(self.module)
        self.module.__class__ = self.kind
        for name, value in self._before.items():
            if value is _ABSENT:
                held.pop(name, None)
            else:
                held[name] = value
        held.update(self._shadows)
        for memory, key, value in self._taken:
            memory[key] = value


def own_attributes(template: nn.Module) -> dict[str, Any]:
    """What a module's class has put into it beside parameters, buffers, children and what torch.nn.Module has."""
    return {name: value for name, value in vars(template).items() if name not in vars(nn.Module())}


@functools.lru_cache(maxsize=256)
def joined(kinds: tuple[type, ...], kind: type) -> type:
    """A class of all these, under the name of the last; itself the first where that is a subclass of the last."""
    if len(kinds) == 1 and issubclass(kinds[0], kind):
        return kinds[0]
    members = {"__module__": kind.__module__, "__reduce_ex__": _reduce, "_joined": (kinds, kind)}
    return type(kind.__name__, (*kinds, kind), members)


def _reduce(self: nn.Module, protocol: int) -> tuple[Any, ...]:
    """Copies and pickles: the class is in no module, but those that it is made of are."""
    state = self.__getstate__() if hasattr(self, "__getstate__") else vars(self)
    return _empty, type(self)._joined, dict(vars(self) if state is None else state)


def _empty(kinds: tuple[type, ...], kind: type) -> nn.Module:
    return nn.Module.__new__(joined(kinds, kind))
