"""A running average of a model's weights, which follows its structure."""

from __future__ import annotations

from itertools import chain

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..structure.hooks import forget_hooks

__all__ = ["averaged"]


class _Average(AveragedModel):
    """One that hands no number to a device when it is updated: torch's own does, and waits until it is there."""

    def update_parameters(self, model: nn.Module) -> None:
        """As torch's, bit for bit."""
        if self.n_averaged == 0:
            super().update_parameters(model)
            return
        alike: dict[object, tuple[list[Tensor], list[Tensor]]] = {}
        for own, theirs in zip(
            chain(self.module.parameters(), self.module.buffers()),
            chain(model.parameters(), model.buffers()),
            strict=True,
        ):
            averages, values = alike.setdefault((own.device, own.dtype), ([], []))
            averages.append(own.detach())
            values.append(theirs.detach().to(own.device))
        for averages, values in alike.values():
            self.multi_avg_fn(averages, values, self.n_averaged)  # which does not look at the last
        self.n_averaged += 1


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of a model, whose ``update_parameters(model)`` moves its weights and running statistics towards those of
    the model by ``1 - decay`` of the way; the first one copies them. It records no activity.
    """
    average = _Average(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    average.n_averaged = average.n_averaged.cpu()  # where a GPU is torch's default device
    forget_hooks(average)
    for module in average.modules():
        if getattr(module, "activity", None) is not None:
            module.activity = None
    return average.eval()
