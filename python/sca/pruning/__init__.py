"""Structured pruning and regrowth by spiking activity: score, schedule, selection and surgery, each in its own file.

Everything loads at its first use: the settings alone need no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

# public name -> module that defines it
_EXPORTS = {
    "AttachReport": "sca.structure",
    "GroupRow": "sca.structure",
    "attach_groups": "sca.structure",
    "compact": "sca.structure",
    "RanksDiffer": "sca.pruning.ranks",
    "Plan": "sca.pruning.schedule",
    "PruneSettings": "sca.pruning.settings",
    "GroupChange": "sca.pruning.scheduler",
    "NotFinite": "sca.pruning.scheduler",
    "PruneEvent": "sca.pruning.scheduler",
    "SCAScheduler": "sca.pruning.scheduler",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
