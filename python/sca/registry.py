"""Registries by file: every module of a package contributes the entries of one dict that all of them define."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any


def collect(package: ModuleType, attribute: str) -> dict[str, Any]:
    """Merge the dict ``attribute`` of all modules of ``package`` that define it.

    Raises:
        ValueError: two modules define the same name.
    """
    entries: dict[str, Any] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, entry in getattr(module, attribute, {}).items():
            if name in entries:
                raise ValueError(
                    f"{module.__name__}: {name!r} is already defined by another module of {package.__name__}"
                )
            entries[name] = entry
    return entries


def lookup(entries: Mapping[str, Any], name: str, argument: str, extensions: str | None = None) -> Any:
    """The entry of a name.

    Args:
        entries: those of this package.
        name: what is looked for.
        argument: how errors call it.
        extensions: group of entry points in which installed packages name further ones, as ``sca.criteria``. One is
            loaded when it is asked for.

    Raises:
        ValueError: unknown; the message names ``argument``, lists the known names and offers the nearest. Or an
            installed package's entry can't be loaded.
    """
    if isinstance(name, str) and name in entries:
        return entries[name]
    others = {} if extensions is None else {point.name: point for point in entry_points(group=extensions)}
    if isinstance(name, str) and name in others:
        try:
            return others[name].load()
        except Exception as error:  # whatever another package's import raises
            raise ValueError(f"{argument}: {name!r} ({others[name].value}) can't be loaded: {error}") from error
    known = [*entries, *others]
    raise ValueError(f"{argument}: expected one of {', '.join(known)}, got {name!r}{nearest(name, known)}")


def find(entries: Mapping[str, Any], value: Any, argument: str, extensions: str | None = None) -> Callable[..., Any]:
    """The strategy that a setting means: the entry of a name, or the object itself that a caller gave.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor a callable.
    """
    if isinstance(value, str):
        return lookup(entries, value, argument, extensions)
    if not callable(value):
        raise TypeError(f"{argument}: expected a name or a callable, got {type(value).__name__}")
    return value


def name_of(value: Any) -> str:
    """How a strategy is called: the name itself, or where an object's code is."""
    if isinstance(value, str):
        return value
    own = getattr(value, "name", "")
    if isinstance(own, str) and own:
        return own
    code = value if hasattr(value, "__qualname__") else type(value)
    return f"{code.__module__}.{code.__qualname__}"


def nearest(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: "; did you mean ...?", or nothing where no known name is near."""
    near = difflib.get_close_matches(str(name), list(known), n=2)
    return f"; did you mean {' or '.join(near)}?" if near else ""
