"""Parts of a model that are not trained."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

__all__ = ["frozen_modules"]


def frozen_modules(model: nn.Module, patterns: Sequence[str]) -> list[nn.Module]:
    """The modules whose names fit one of the patterns (``features.0``, ``features.[12].*``), with their parameters
    frozen. They are to stay in eval mode, so that their batch norms keep their statistics.

    Raises:
        ValueError: a pattern fits no module; nothing would be left to train. Nothing has been frozen.
    """
    found: dict[str, nn.Module] = {}
    names = {name: module for name, module in model.named_modules() if name}
    for pattern in patterns:
        fitting = {name: module for name, module in names.items() if fnmatchcase(name, pattern)}
        if not fitting:
            raise ValueError(
                f"freeze: expected patterns of the network's modules ({', '.join(list(names)[:8])}, ...), got "
                f"{pattern!r:.100}, which fits none"
            )
        found |= fitting
    frozen = [p for module in found.values() for p in module.parameters()]
    if patterns and all(any(p is other for other in frozen) for p in model.parameters()):
        raise ValueError(f"freeze: expected some parameters left to train, got patterns of all: {', '.join(patterns)}")
    for p in frozen:
        p.requires_grad_(False)
    return list(found.values())
