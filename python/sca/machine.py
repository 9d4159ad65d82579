"""Facts about this machine and what is installed on it: what figures and runs depend on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["checkout", "device_name", "version", "versions"]


def device_name() -> str:
    """Processor and cores, as a folder name."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        told = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M))
        model = told.get("model name", model)
        if not re.search(r"\d", model) and "cpu family" in told:  # a rented machine's may hide which one it is
            model += f" family {told['cpu family']} model {told['model']}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = re.sub(r"\((r|tm)\)|\bprocessor\b|@?\s*[\d.]+ghz", " ", model.lower())
    return re.sub(r"[^a-z0-9]+", "-", f"{model} {cores} cores").strip("-")


def version(package: str) -> str:
    """Of an installed package, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of Python and of packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def checkout(folder: Path, *paths: str) -> dict[str, Any]:
    """``commit`` of the git checkout that a folder is in, and whether it is ``dirty``: tracked files (those below
    ``paths``, if any are named) differ from it. None where it is in no checkout, or git is missing or takes longer than
    ten seconds."""
    commit = _git(folder, "rev-parse", "HEAD")
    changes = None if commit is None else _git(folder, "status", "--porcelain", "--untracked-files=no", "--", *paths)
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    # the index is left alone: another git may be working on it
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip()
