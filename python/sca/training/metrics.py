"""Accuracy: how much of a data set a network predicts."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .precision import autocast

__all__ = ["accuracy", "correct", "hits", "hits_and_seen"]

# What this module also held once -> where it is.
_MOVED = {
    "FiringRate": "sca.training.firing",
    "Speed": "sca.training.speed",
    "compare_speed": "sca.training.speed",
    "connectivity": "sca.cost",
}


def correct(logits: Tensor, labels: Tensor) -> int:
    """How many of ``labels`` ``[N]`` (or the most probable of ``[N, classes]``) are predicted by ``logits``
    ``[N, classes]``, or the time mean of ``[T, N, classes]``."""
    return int(hits(logits, labels))


def hits(logits: Tensor, labels: Tensor) -> Tensor:
    """The same as an int64 tensor on their device, which nobody waits for."""
    mean = logits.mean(0) if logits.dim() == 3 else logits
    most_probable = labels.argmax(1) if labels.dim() == 2 else labels
    return (mean.argmax(1) == most_probable).sum()


def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str = "float32") -> float:
    """Share of examples that the model predicts, in [0, 1]; in eval mode, with the mode restored."""
    hits, seen = hits_and_seen(model, batches, precision)
    return hits / seen


@torch.inference_mode()
def hits_and_seen(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str) -> tuple[int, int]:
    """How many examples the model predicts, of how many; in eval mode, with the mode restored."""
    was_training = model.training
    model.eval()
    found = seen = 0
    for images, labels in batches:
        with autocast(precision, images.device.type):
            found += correct(model(images), labels)
        seen += len(labels)
    model.train(was_training)
    return found, seen


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _MOVED[name]
    warnings.warn(f"{__name__}.{name} is deprecated: use {home}.{name}", DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(home), name)
