"""Convolution that skips dormant channels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch import nn as tnn

from .. import functional as F
from .. import paths
from ..channels import Channels, Geometry, gather
from .group import ChannelGroup, gathered
from .kept import KeepsGathered


class ChannelConv2d(KeepsGathered, tnn.Conv2d):
    """torch.nn.Conv2d that computes the active channels of its groups alone; same parameters, same state_dict, full
    size.

    Args:
        in_group, out_group: channel groups of the input and the output; None: all channels, always.
        spike_input: whether the input holds zeros and ones only, see :func:`sca_kernels.functional.channel_conv2d`.
        backend: see :func:`sca_kernels.functional.neuron`.
        path: see :func:`sca_kernels.functional.channel_conv2d`.
        All others as in torch.nn.Conv2d.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *arguments,
        in_group: ChannelGroup | None = None,
        out_group: ChannelGroup | None = None,
        spike_input: bool | None = None,
        backend: str | None = None,
        path: str | None = None,
        **named,
    ) -> None:
        super().__init__(in_channels, out_channels, *arguments, **named)
        for name, group, size in (("in_group", in_group, in_channels), ("out_group", out_group, out_channels)):
            if group is not None and group.num_channels != size:
                raise ValueError(f"{name}: expected a group of {size} channels, got {group}")
        self.in_group, self.out_group = in_group, out_group
        self.spike_input, self.backend, self.path = spike_input, backend, path

    @property
    def geometry(self) -> Geometry:
        """Of the convolution itself, whose zeros are the same on both sides; any other border is put around its input
        first."""
        left, right, top, bottom = self._reversed_padding_repeated_twice
        zeros = self.padding_mode == "zeros" and (left, top) == (right, bottom)
        return Geometry(self.stride, (top, left) if zeros else (0, 0), self.dilation, self.groups)

    def forward(self, x: Tensor) -> Tensor:
        """x [M, A, H, W] or [T, N, A, H, W], A the active input channels (or all: the active ones are then selected) ->
        the same with the active output channels."""
        inputs = None if self.in_group is None else self.in_group.index(x.device)
        outputs = None if self.out_group is None else self.out_group.index(x.device)
        weight, bias = self.weight, self.bias
        if inputs is None and outputs is None and self._is_plain(x, weight):
            return torch.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)
        full_input = inputs is not None and x.shape[-3] == self.in_channels
        if self.keeps and self.groups == 1 and self.path != "implicit" and not full_input:
            channels = Channels(inputs, outputs)
            weight, bias = self.kept(lambda: (gather(self.weight, channels), gathered(self.bias, self.out_group)))
            inputs = outputs = None
        geometry, border = self.geometry, self._reversed_padding_repeated_twice
        if self.padding_mode != "zeros":
            frames = tnn.functional.pad(x.flatten(0, -4), border, mode=self.padding_mode)
            x = frames.unflatten(0, x.shape[:-3])
        elif any(border) and not any(geometry.padding):
            x = tnn.functional.pad(x, border)
        return F.channel_conv2d(
            x,
            weight,
            bias,
            *geometry,
            inputs,
            outputs,
            full_input=full_input,
            spike_input=self.spike_input,
            backend=self.backend,
            path=self.path,
        )

    def _is_plain(self, x: Tensor, weight: Tensor) -> bool:
        """Whether this is torch.nn.Conv2d on frames of the right kind: what :func:`F.channel_conv2d` would find, too,
        in ten times the time, and small layers take little longer than that."""
        if type(x) is not Tensor or type(weight) not in (tnn.Parameter, Tensor):
            return False
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        if self.path is not None or self.backend is not None:
            return False
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            return False
        if self.spike_input and torch.is_grad_enabled() and weight.requires_grad:
            return False
        device, dtype = x.device, x.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        elif dtype != weight.dtype:
            return False
        last = not x.is_contiguous()
        if last and (x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last)):
            return False
        problem = weight.shape, self.stride, self.padding, self.dilation, self.groups
        return paths.is_dense(device, dtype, x.shape, last, *problem)

    def extra_repr(self) -> str:
        groups = {"in_group": self.in_group, "out_group": self.out_group}
        return ", ".join([super().extra_repr(), *(f"{k}={g}" for k, g in groups.items() if g is not None)])
