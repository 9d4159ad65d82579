"""What a figure depends on besides what was measured."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from sca_kernels import doctor

from ..machine import checkout, device_name, version, versions

__all__ = ["PACKAGES", "conditions", "device_name", "version"]

PACKAGES = ("torch", "numpy", "sca_kernels", "spikingjelly", "snntorch", "norse")


def conditions(command: str) -> dict[str, Any]:
    """Date, processor, threads, what this machine can run (:func:`sca_kernels.doctor.report`), load, versions, and the
    commit of the checkout that the command is called in."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "backends": {row.name: row.detail for row in doctor.report() if row.on},
        "load_average": os.getloadavg()[0],
        "command": command,
        **checkout(Path.cwd()),
        "versions": versions(PACKAGES),
    }
