"""A running average of a model's weights, which follows its structure."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..structure.hooks import forget_hooks

__all__ = ["averaged"]


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of a model, whose ``update_parameters(model)`` moves its weights and running statistics towards those of
    the model by ``1 - decay`` of the way; the first one copies them. It records no activity.
    """
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    forget_hooks(average)
    for module in average.modules():
        if getattr(module, "activity", None) is not None:
            module.activity = None
    return average.eval()
