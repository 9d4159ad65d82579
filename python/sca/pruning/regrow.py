"""What a regrown channel starts with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from sca_kernels.nn import ChannelGroup

from ..structure.groups import Axis, Members, channel_axes, weight_dims

__all__ = ["REGROW_INITS"]


def keep(members: Members, channels: Tensor, generator: Generator) -> None:
    """What it had when it was cut: weights, batch norm and running statistics, as the full-size tensors kept them."""


@torch.no_grad()
def zero(members: Members, channels: Tensor, generator: Generator) -> None:
    """Zero outgoing weights: the network's outputs do not change, and these weights have a gradient at once.

    Zero filters would not do: a constant potential has no variance, so that batch norm multiplies the first gradient by
    1 / sqrt(eps), and a threshold that nothing reaches passes none on with surrogates of bounded support.
    """
    for layer in members.consumers.values():
        for axis in channel_axes(layer).get("weight", ()):
            if axis.dim == weight_dims(layer)[1]:
                layer.weight.index_fill_(axis.dim, axis.of(members.group, channels.to(layer.weight.device)), 0)


@torch.no_grad()
def reinit(members: Members, channels: Tensor, generator: Generator) -> None:
    """Drawn afresh like the channels that were active: normal weights of their spread; batch norm, leak, bias: their
    mean. Indices say where a channel lies, and stay.
    """
    modules = {**members.producers, **members.carriers, **members.consumers}
    for module in modules.values():
        for name, axes in channel_axes(module).items():
            tensor = getattr(module, name)
            for axis in axes:
                if members.group in axis.group.parts and tensor.is_floating_point():
                    _reinit(tensor, axis, members.group, channels, generator)


def _reinit(tensor: Tensor, axis: Axis, group: ChannelGroup, channels: Tensor, generator: Generator) -> None:
    survivors = group.active[~torch.isin(group.active, channels)]
    like = tensor.index_select(axis.dim, axis.of(group, survivors.to(tensor.device)))
    entries = axis.of(group, channels.to(tensor.device))
    if tensor.dim() == 1:
        tensor[entries] = like.mean()
    else:
        shape = [entries.numel() if d == axis.dim else size for d, size in enumerate(tensor.shape)]
        drawn = torch.randn(shape, generator=generator, device="cpu") * like.std(correction=0).cpu()
        tensor.index_copy_(axis.dim, entries, drawn.to(tensor))


#: name -> function of the group, its channels that are being regrown (int64, CPU; active already) and a CPU generator
REGROW_INITS: dict[str, Callable[[Members, Tensor, Generator], None]] = {"keep": keep, "zero": zero, "reinit": reinit}
