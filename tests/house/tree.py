"""What the house tests read: the project's Python files, as modules with their imports."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"sca_kernels": ROOT / "sca_kernels", "sca": ROOT / "python" / "sca"}


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, for every module of both packages."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


def imports(name: str, source: str, is_package: bool) -> set[str]:
    """Dotted names that the module ``name`` imports anywhere in ``source``: ``from a import b`` counts as a.b."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = name.split(".") if is_package else name.split(".")[:-1]
            base = parts[: len(parts) - (node.level - 1)] if node.level else []
            base += node.module.split(".") if node.module else []
            found.update(".".join([*base, alias.name]) for alias in node.names)
    return found


def all_imports() -> dict[str, set[str]]:
    """Module -> what it imports, for every module of both packages."""
    return {name: imports(name, path.read_text(), path.name == "__init__.py") for name, path in modules().items()}


def inside(name: str, package: str) -> bool:
    """Whether the dotted name is the package or something in it."""
    return name == package or name.startswith(package + ".")
