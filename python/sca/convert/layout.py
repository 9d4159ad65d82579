"""Weights of convolutions in channels_last, in which convolutions, pools and neurons run fastest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

__all__ = ["ChannelsLast", "has_another"]


def has_another(modules: Iterable[nn.Module]) -> bool:
    """Whether there is a weight that channels_last would change."""
    return any(True for module in modules for _ in _contiguous(module))


class ChannelsLast:
    """Convolutions' weights [C_out, C_in, kh, kw] made channels_last, as the same parameters; ``revert`` undoes it."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.before = [(p, p.stride()) for module in modules for p in _contiguous(module)]
        for p, _ in self.before:
            _lay_out(p, _channels_last(p))

    def revert(self) -> None:
        """Make them what they were."""
        for p, strides in self.before:
            _lay_out(p, strides)


def _lay_out(p: nn.Parameter, strides: tuple[int, ...]) -> None:
    def laid_out(x: Tensor) -> Tensor:
        return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)

    p.data = laid_out(p.data)
    if p.grad is not None:
        p.grad = laid_out(p.grad)


def _channels_last(p: Tensor) -> tuple[int, ...]:
    """Its strides, also of a weight of one channel or one pixel, which is contiguous either way: torch goes by them."""
    _, channels, height, width = p.shape
    return channels * height * width, 1, channels * width, channels


def _contiguous(module: nn.Module) -> Iterator[nn.Parameter]:
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        weight = module._parameters.get("weight")
        if isinstance(weight, nn.Parameter) and weight.is_contiguous() and weight.stride() != _channels_last(weight):
            yield weight
