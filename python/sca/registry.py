"""Registries by file: every module of a package contributes the entries of one dict that all of them define."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
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


def lookup(entries: dict[str, Any], name: str, argument: str) -> Any:
    """Return ``entries[name]``, or raise a ValueError that names ``argument``, lists the known names and offers the
    nearest."""
    if not isinstance(name, str) or name not in entries:
        raise ValueError(f"{argument}: expected one of {', '.join(entries)}, got {name!r}{nearest(name, entries)}")
    return entries[name]


def nearest(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: "; did you mean ...?", or nothing where no known name is near."""
    near = difflib.get_close_matches(str(name), list(known), n=2)
    return f"; did you mean {' or '.join(near)}?" if near else ""
