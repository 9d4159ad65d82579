"""What a run ran on: an entry for each of its starts, so that a figure can be traced to code and machine."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from .. import machine
from ..files import read_whole, write_json

__all__ = ["record_start"]

_log = logging.getLogger(__name__)


def record_start(file: Path, device: str, processes: int) -> None:
    """Add this start of a run to ``file``, a JSON list; a file that is damaged is begun anew, with a warning.

    Args:
        device: what the run computes on.
        processes: that train together.
    """
    write_json(file, [*_held(file), _start(device, processes)])


def _held(file: Path) -> list[Any]:
    if not file.exists():
        return []
    try:
        entries = json.loads(read_whole(file))
        if isinstance(entries, list):
            return entries
        reason = f"expected a list, got {type(entries).__name__}"
    except (OSError, RecursionError, ValueError) as error:
        reason = str(error)
    _log.warning("%s: what earlier starts ran on is lost (%.200s)", file, reason)
    return []


def _start(device: str, processes: int) -> dict[str, Any]:
    kind = torch.device(device)
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        **machine.checkout(Path.cwd()),
        "versions": machine.versions(("sca_kernels", "torch", "triton", "numpy")),
        "processor": machine.device_name(),
        "gpu": torch.cuda.get_device_name(kind) if kind.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "processes": processes,
    }
