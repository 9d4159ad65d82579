"""Convolution that skips dormant channels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch import nn as tnn

from .. import checks, paths
from .. import functional as F
from ..channels import Geometry
from .group import CarriesGroups, ChannelGroup, check_group


def _naming_itself(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A forward whose error for an input that should hold spikes says which layer got it, and what to do."""

    @functools.wraps(forward)
    def named(self: ChannelConv2d, x: Tensor, *arguments: Any) -> Tensor:
        try:
            return forward(self, x, *arguments)
        except ValueError as error:
            if self.spike_input and isinstance(x, Tensor) and not ((x == 0) | (x == 1)).all():
                raise ValueError(
                    f"x: expected zeros and ones, since {type(self).__name__}({self.extra_repr()}) was made with "
                    "spike_input=True, got other values, as a dropout, an average pool or an addition behind a neuron "
                    "makes them; make the layer with spike_input=None, which finds out by itself, or False"
                ) from error
            raise

    return named


def _check_arguments(
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, padding_mode, **others
) -> None:
    """Those of torch.nn.Conv2d."""
    for name, size in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
        checks.integer(name, size)
    kernel, steps = checks.pair("kernel_size", kernel_size, 1), checks.pair("stride", stride, 1)
    checks.pair("dilation", dilation, 1)
    if isinstance(padding, str):
        checks.one_of("padding", padding, ("same", "valid"), ", one int or two")
        if padding == "same" and max(steps) > 1:
            raise ValueError(f"padding: expected no 'same' with a stride, got stride {stride}")
    else:
        checks.pair("padding", padding, 0)
    if in_channels % groups or out_channels % groups:
        raise ValueError(
            f"groups: expected a divisor of {in_channels} input and {out_channels} output channels, got {groups}"
        )
    checks.one_of("padding_mode", padding_mode, ("zeros", "reflect", "replicate", "circular"))
    checks.elements("in_channels, out_channels", (out_channels, in_channels // groups, *kernel))


class ChannelConv2d(CarriesGroups, tnn.Conv2d):
    """torch.nn.Conv2d that computes the active channels of its groups alone; same parameters, same state_dict, full
    size.

    Args:
        in_group, out_group: channel groups of the input and the output; None: all channels, always.
        spike_input: whether the input holds zeros and ones only, see :func:`sca_kernels.functional.channel_conv2d`.
        backend: see :func:`sca_kernels.functional.neuron`.
        path: see :func:`sca_kernels.functional.channel_conv2d`.
        All others as in torch.nn.Conv2d.
    """

    _last_asked: tuple[tuple, bool] | None = None
    """See :meth:`_is_plain`."""

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
        _check_arguments(**checks.weights(tnn.Conv2d, in_channels, out_channels, *arguments, **named))
        check_group("in_group", in_group, in_channels)
        check_group("out_group", out_group, out_channels)
        F.check_backend(backend)
        F.check_path(path)
        if spike_input is not None:
            checks.boolean("spike_input", spike_input)
        super().__init__(in_channels, out_channels, *arguments, **named)
        self.in_group, self.out_group = in_group, out_group
        self.spike_input, self.backend, self.path = spike_input, backend, path

    @property
    def geometry(self) -> Geometry:
        """Of the convolution itself, whose zeros are the same on both sides; any other border is put around its input
        first."""
        left, right, top, bottom = self._reversed_padding_repeated_twice
        zeros = self.padding_mode == "zeros" and (left, top) == (right, bottom)
        return Geometry(self.stride, (top, left) if zeros else (0, 0), self.dilation, self.groups)

    def check_input(self, x: Tensor) -> None:
        """What :func:`sca_kernels.functional.channel_conv2d` can't check, since weights are gathered and a border is
        put around x before."""
        if not isinstance(x, Tensor) and checks.is_traced(x):
            return
        if not isinstance(x, Tensor) or x.dim() not in (4, 5):
            kind = ValueError if isinstance(x, Tensor) else TypeError
            raise kind(f"x: expected a tensor [M, C, H, W] or [T, N, C, H, W], got {checks.describe(x)}")
        grouped = self.in_group is not None or self.out_group is not None
        if grouped and x.device != self.weight.device:
            raise ValueError(f"x: expected a tensor on {self.weight.device}, got {checks.describe(x)}")
        left, right, top, bottom = self._reversed_padding_repeated_twice
        if self.padding_mode == "zeros" and (left, top) == (right, bottom):
            return
        if not checks.is_plain(x) or x.dtype not in checks.DTYPES:
            raise TypeError(f"x: expected a floating-point tensor, got {checks.describe(x)}")
        if 0 in x.shape[-3:]:
            raise ValueError(f"x: expected a map and its channels, got {tuple(x.shape)}")
        if self.padding_mode in ("reflect", "circular"):
            least = self.padding_mode == "reflect"  # whose border does not repeat the edge
            if max(left, right) + least > x.shape[-1] or max(top, bottom) + least > x.shape[-2]:
                border = (top, bottom, left, right)
                raise ValueError(
                    f"x: expected a map with room for the {self.padding_mode} border {border}, got {tuple(x.shape)}"
                )

    def forward(self, x: Tensor) -> Tensor:
        """x [M, A, H, W] or [T, N, A, H, W], A the active input channels (or all: the active ones are then selected) ->
        the same with the active output channels."""
        weight = self.weight
        inputs = None if self.in_group is None else self.in_group.index(weight.device)
        outputs = None if self.out_group is None else self.out_group.index(weight.device)
        if inputs is None and outputs is None and self._is_plain(x, weight):
            return torch.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        return self._of_channels(x, inputs, outputs)

    @_naming_itself
    def _of_channels(self, x: Tensor, inputs: Tensor | None, outputs: Tensor | None) -> Tensor:
        """:meth:`forward` with the indices of the active channels, None for all."""
        self.check_input(x)
        full_input = inputs is not None and x.shape[-3] == self.in_channels
        geometry, border = self.geometry, self._reversed_padding_repeated_twice
        if self.padding_mode != "zeros":
            frames = tnn.functional.pad(x.flatten(0, -4), border, mode=self.padding_mode)
            x = frames.unflatten(0, x.shape[:-3])
        elif any(border) and not any(geometry.padding):
            x = tnn.functional.pad(x, border)
        return F.channel_conv2d(
            x,
            self.weight,
            self.bias,
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
        in ten times the time, and small layers take little longer than that. The last answer is kept with what it
        depends on: between two convolutions, whose data push it out of the caches, each line here takes long."""
        if type(x) is not Tensor or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        if self.spike_input and torch.is_grad_enabled() and weight.requires_grad:
            return False
        key = x.shape, x.stride(), x.dtype, x.device, type(weight), weight.dtype, weight.device
        last = self._last_asked
        if last is None or last[0] != key:
            self._last_asked = last = key, self._finds_plain(x, weight)
        return last[1] or self._finds_plain(x, weight, autocast=True)

    def _finds_plain(self, x: Tensor, weight: Tensor, autocast: bool = False) -> bool:
        """The same, of the attributes as they are. Where torch's own convolution is the choice in the dtype of x, it is
        in autocast's, to which it casts."""
        if x.is_meta or type(weight) not in (tnn.Parameter, Tensor) or x.device != weight.device:
            return False
        if self.path is not None or self.backend is not None:
            return False
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            return False
        dtype = x.dtype
        if autocast:
            if not torch.is_autocast_enabled(x.device.type):
                return False
            dtype = torch.get_autocast_dtype(x.device.type)
        elif dtype != weight.dtype:
            return False
        last = not x.is_contiguous()
        if last and (x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last)):
            return False
        problem = weight.shape, self.stride, self.padding, self.dilation, self.groups
        return paths.is_dense(x.device, dtype, x.shape, last, *problem)

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name != "_last_asked":
            self.__dict__["_last_asked"] = None

    def extra_repr(self) -> str:
        groups = {"in_group": self.in_group, "out_group": self.out_group}
        return ", ".join([super().extra_repr(), *(f"{k}={g}" for k, g in groups.items() if g is not None)])
