"""Packages whose names load at their first use, so that what needs no torch can be had without it."""

from __future__ import annotations

import ast
import importlib
import sys
from types import ModuleType
from typing import Any

__all__ = ["export"]


def export(package: str) -> list[str]:
    """Have a package load what it exports when that is asked for.

    That is what its source imports under ``if TYPE_CHECKING:``, so type checkers and editors know the names as well.

    Args:
        package: its ``__name__``; to be called by the package itself.

    Returns:
        The names: its ``__all__``.
    """
    homes = _homes(sys.modules[package].__spec__.loader.get_source(package))

    class Package(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name not in homes:
                raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(homes)}")
            if homes[name] == ".":
                return importlib.import_module(f".{name}", package)
            value = getattr(importlib.import_module(homes[name], package), name)
            setattr(self, name, value)
            return value

        def __setattr__(self, name: str, value: Any) -> None:
            # What imports a module makes it an attribute of its package: not where what it defines has that name.
            if not (homes.get(name, ".") != "." and isinstance(value, ModuleType)):
                super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted(homes)

    sys.modules[package].__class__ = Package
    return list(homes)


def _homes(source: str) -> dict[str, str]:
    """Name -> the module that it is imported from: relative, ``.`` for modules of the package itself."""
    blocks = (node for node in ast.parse(source).body if isinstance(node, ast.If))
    imports = (each for block in blocks if ast.unparse(block.test) == "TYPE_CHECKING" for each in block.body)
    return {alias.name: "." * each.level + (each.module or "") for each in imports for alias in each.names}
