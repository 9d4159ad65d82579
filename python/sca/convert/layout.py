"""Weights of convolutions in channels_last, in which convolutions, pools and neurons run fastest."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

__all__ = ["ChannelsLast", "has_another"]


def has_another(modules: Iterable[nn.Module]) -> bool:
    """Whether there is a weight that channels_last would change."""
    return any(True for module in modules for _ in _contiguous(module))


class ChannelsLast:
    """Convolutions' weights [C_out, C_in, kh, kw] made channels_last, as the same parameters; ``revert`` undoes it."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.parameters = [p for module in modules for p in _contiguous(module)]
        self._lay_out(torch.channels_last)

    def revert(self) -> None:
        """Make them contiguous again."""
        self._lay_out(torch.contiguous_format)

    def _lay_out(self, layout: torch.memory_format) -> None:
        for p in self.parameters:
            p.data = p.data.contiguous(memory_format=layout)
            if p.grad is not None:
                p.grad = p.grad.contiguous(memory_format=layout)


def _contiguous(module: nn.Module) -> Iterable[nn.Parameter]:
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        weight = module._parameters.get("weight")
        if (
            weight is not None
            and weight.is_contiguous()
            and not isinstance(weight, nn.parameter.UninitializedParameter)
        ):
            yield weight
