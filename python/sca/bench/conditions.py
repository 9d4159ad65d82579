"""What a figure depends on besides what was measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from sca_kernels import doctor

PACKAGES = ("torch", "numpy", "sca_kernels", "spikingjelly", "snntorch")


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


def conditions(command: str) -> dict[str, Any]:
    """Date, processor, threads, what this machine can run (:func:`sca_kernels.doctor.report`), load, versions."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "backends": {row.name: row.detail for row in doctor.report() if row.on},
        "load_average": os.getloadavg()[0],
        "command": command,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
