"""Packages whose names load at their first use, so that what needs no torch can be had without it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

__all__ = ["export"]


def export(package: str, homes: Mapping[str, str]) -> list[str]:
    """Have a package load what it exports when that is asked for.

    Args:
        package: its ``__name__``; to be called by the package itself.
        homes: public name -> module that defines it; with a dot in front, one of the package.

    Returns:
        The names: its ``__all__``.
    """

    class Package(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name not in homes:
                raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(homes)}")
            value = getattr(importlib.import_module(homes[name], package), name)
            setattr(self, name, value)
            return value

        def __setattr__(self, name: str, value: Any) -> None:
            # What imports a module makes it an attribute of its package: not where what it defines has that name.
            if not (name in homes and isinstance(value, ModuleType)):
                super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*super().__dir__(), *homes})

    sys.modules[package].__class__ = Package
    return list(homes)
