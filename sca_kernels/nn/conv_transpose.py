"""Transposed convolutions that skip dormant channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch import nn as tnn

from .. import checks
from ..channels import Channels, check_grouped_lists, gather, is_depthwise, narrow
from .conv import ConvolutionLayer


class ChannelConvTranspose(ConvolutionLayer):
    """A transposed convolution: torch's own, of the active block of the weight [C_in, C_out / groups, ...], which is
    gathered by torch's operators, so that every derivative is theirs."""

    convolve: ClassVar[Callable[..., Tensor]]
    """The function of torch."""

    def check_input(self, x: Tensor) -> None:
        """Everything that torch would call by other names, or by none."""
        super().check_input(x)
        if checks.is_traced(x):
            return
        weight = self.weight
        if not checks.is_plain(x) or x.dtype not in checks.DTYPES:
            raise TypeError(f"x: expected a floating-point tensor {self.shapes}, got {checks.describe(x)}")
        if x.device != weight.device:
            raise ValueError(f"x: expected a tensor on {weight.device}, got {checks.describe(x)}")
        if x.dtype != weight.dtype:
            autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)
            if not autocast or torch.float64 in (x.dtype, weight.dtype):  # which autocast leaves as it is
                raise TypeError(f"x: expected the dtype of the weight, {weight.dtype}, got {x.dtype}")
        self.check_channels(x)

    def forward(self, x: Tensor, output_size: int | Sequence[int] | None = None) -> Tensor:
        """x [M, A, *S] or [T, N, A, *S], A the active input channels (or all: the active ones are then selected) -> the
        same with the active output channels.

        Args:
            x: see above.
            output_size: spatial size of the output (or all of its sizes), which says what ``output_padding`` does
                otherwise.
        """
        weight, bias, groups = self.weight, self.bias, self.groups
        inputs = None if self.in_group is None else self.in_group.index(weight.device)
        outputs = None if self.out_group is None else self.out_group.index(weight.device)
        dense = inputs is None and outputs is None
        if dense and output_size is None and self._is_frames(x):
            try:
                geometry = self.stride, self.padding, self.output_padding, groups, self.dilation
                return self.convolve(x, weight, bias, *geometry)
            except RuntimeError:  # whose words are torch's
                self.check_input(x)
                self._extra(x, None)
                raise
        self.check_input(x)
        extra = self._extra(x, output_size)
        frames = x if x.dim() == 2 + self.spatial else x.flatten(0, 1)
        if not dense:
            channels = Channels(outputs, inputs)  # rows are input channels here
            if groups > 1:
                check_grouped_lists(Channels(inputs, outputs), is_depthwise(weight.shape, groups))
                channels, groups = Channels(None, outputs), outputs.numel()
            weight, _ = gather(weight, None, channels, weight.dtype)
            bias = bias if bias is None or outputs is None else bias.index_select(0, outputs)
            frames = narrow(frames, inputs)
        y = self.convolve(frames, weight, bias, self.stride, self.padding, extra, groups, self.dilation)
        return y if frames.dim() == x.dim() else y.unflatten(0, x.shape[:2])

    def _is_frames(self, x: Tensor) -> bool:
        """Whether torch itself takes x, or refuses it for what :meth:`check_input` would."""
        if type(x) is not Tensor or torch.compiler.is_compiling():
            return False
        return x.dim() == 2 + self.spatial and x.device == self.weight.device

    def _extra(self, x: Tensor, output_size: int | Sequence[int] | None) -> tuple[int, ...]:
        """``output_padding``, or what takes its place for an output of that size; ValueError where none has room."""
        sizes = x.shape[-self.spatial :]
        geometry = zip(sizes, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        least = [(n - 1) * step - 2 * cut + reach * (k - 1) + 1 for n, k, step, cut, reach in geometry]
        extra = self.output_padding
        if output_size is not None:
            wanted = output_size
            if isinstance(wanted, Sequence) and len(wanted) == x.dim():
                wanted = wanted[-self.spatial :]
            wanted = checks.sizes("output_size", wanted, 1, self.spatial)
            extra = tuple(size - first for size, first in zip(wanted, least, strict=True))
            if any(not 0 <= more < step for more, step in zip(extra, self.stride, strict=True)):
                most = [first + step - 1 for first, step in zip(least, self.stride, strict=True)]
                raise ValueError(
                    f"output_size: expected {least} to {most} for x {tuple(x.shape)}, got {checks.shown(output_size)}"
                )
        if any(size + more < 1 for size, more in zip(least, extra, strict=True)) or 0 in sizes:
            raise ValueError(f"x: expected an output that padding {self.padding} leaves some of, got {tuple(x.shape)}")
        return extra


class ChannelConvTranspose2d(ChannelConvTranspose, tnn.ConvTranspose2d):
    """torch.nn.ConvTranspose2d that computes the active channels of its groups alone; same parameters, same state_dict,
    full size. x is [M, A, H, W] or [T, N, A, H, W].

    Args:
        in_group, out_group: channel groups of the input and the output; None: all channels, always.
        All others as in torch.nn.ConvTranspose2d. ``groups``: any number while all channels are active, else 1 or, for
            as many channels at input and output, one for each.
    """

    torchs, spatial = tnn.ConvTranspose2d, 2
    convolve = staticmethod(torch.conv_transpose2d)


class ChannelConvTranspose1d(ChannelConvTranspose, tnn.ConvTranspose1d):
    """torch.nn.ConvTranspose1d that computes the active channels of its groups alone; same parameters, same state_dict,
    full size. x is [M, A, L] or [T, N, A, L].

    Args:
        All as in :class:`ChannelConvTranspose2d` and torch.nn.ConvTranspose1d.
    """

    torchs, spatial = tnn.ConvTranspose1d, 1
    convolve = staticmethod(torch.conv_transpose1d)
