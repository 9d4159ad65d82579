"""Has the neurons of a model record their activity while it trains, those that are in eval mode, too."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from sca_kernels.nn import Activity

from ..structure.hooks import capturable, own

__all__ = ["record_in_training"]


def record_in_training(model: nn.Module, activities: Iterable[Activity]) -> list[torch.utils.hooks.RemovableHandle]:
    """Hooks of a model by which passes of it in training mode add to these activities, though the neurons themselves be
    in eval mode, as those of frozen layers often are. Parts of it that are called by themselves record by their own
    mode.
    """
    activities = [activity for activity in activities if activity.training_only]
    return [
        model.register_forward_pre_hook(functools.partial(_before, activities)),
        model.register_forward_hook(functools.partial(_after, activities)),
    ]


@own
@capturable
def _before(activities: list[Activity], model: nn.Module, inputs: tuple[Any, ...]) -> None:
    for activity in activities:
        activity.training_only = not model.training


@own
@capturable
def _after(activities: list[Activity], model: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    for activity in activities:
        activity.training_only = True
