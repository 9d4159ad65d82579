"""Parameters at the active width, gathered once where nothing changes them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch import nn as tnn

from ..ops import transformed
from .group import ChannelGroup

_Parameters = tuple[Tensor, Tensor | None]


class KeepsGathered(tnn.Module):
    """A layer that keeps its gathered weight and bias in evaluation without gradients, until the layer is trained, a
    parameter changes or a group does. What changes a parameter behind autograd's back (``weight.data``) shows after the
    next :meth:`train` or :meth:`eval`."""

    weight: Tensor
    bias: Tensor | None
    in_group: ChannelGroup | None
    out_group: ChannelGroup | None
    _held: tuple[tuple, _Parameters, list[Tensor]] | None = None

    @property
    def keeps(self) -> bool:
        """Whether gathered parameters can be kept now; those made in inference mode don't tell when they change, and
        those that torch.func hands out have no memory."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or transformed():
            return False
        return not any(p is not None and p.is_inference() for p in (self.weight, self.bias))

    def kept(self, gather: Callable[[], _Parameters]) -> _Parameters:
        """What ``gather`` gave last, if it would give the same again."""
        groups = [
            None if group is None else (group.version, group.probing) for group in (self.in_group, self.out_group)
        ]
        parameters = [p for p in (self.weight, self.bias) if p is not None]
        state = [(id(p), p.data_ptr(), p._version, p.dtype, p.stride()) for p in parameters]
        key = (*groups, *state)
        if self._held is None or self._held[0] != key:
            self._held = key, gather(), parameters  # held, so that no other tensor gets their identity
        return self._held[1]

    def train(self, mode: bool = True):
        self._held = None
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True):
        self._held = None
        return super()._apply(fn, recurse)
