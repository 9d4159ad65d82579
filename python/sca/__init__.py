"""Train spiking networks, prune them while they learn, and show what it saved.

Everything loads at its first use: ``import sca`` is light, whatever the training tools need.
"""

from __future__ import annotations

import importlib
from typing import Any

# public name -> module that defines it
_EXPORTS = {
    "__version__": "sca_kernels.version",
    "SCAScheduler": "sca.pruning",
    "attach_groups": "sca.structure",
    "compact": "sca.structure",
    "report_cost": "sca.cost",
    "save": "sca.saving",
    "load": "sca.saving",
}
_MODULES = ("bench", "cost", "data", "experiments", "models", "pruning", "report", "saving", "structure", "training")

__all__ = [*_EXPORTS, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"sca.{name}")
    raise AttributeError(f"module 'sca' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)
