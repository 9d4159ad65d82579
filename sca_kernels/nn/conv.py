"""Convolutions that skip dormant channels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch import nn as tnn

from .. import checks, paths
from .. import functional as F
from ..channels import Geometry
from .analog import FollowsAnalog
from .group import CarriesGroups, ChannelGroup, check_group


def _naming_itself(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A forward whose error for an input that should hold spikes says which layer got it, and what to do."""

    @functools.wraps(forward)
    def named(self: ChannelConv, x: Tensor, *arguments: Any) -> Tensor:
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
    many: int,
    in_channels,
    out_channels,
    kernel_size,
    stride,
    padding,
    dilation,
    groups,
    padding_mode,
    output_padding=None,
    **others,
) -> None:
    """Those of torch's convolutions over so many dimensions; ``output_padding`` of the transposed ones alone."""
    for name, size in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
        checks.integer(name, size)
    kernel, steps = checks.sizes("kernel_size", kernel_size, 1, many), checks.sizes("stride", stride, 1, many)
    reach = checks.sizes("dilation", dilation, 1, many)
    modes = ("zeros", "reflect", "replicate", "circular")
    if output_padding is not None:
        checks.sizes("padding", padding, 0, many)
        extra = checks.sizes("output_padding", output_padding, 0, many)
        if any(n >= max(bounds) for n, *bounds in zip(extra, steps, reach, strict=True)):
            raise ValueError(
                f"output_padding: expected less than stride {stride} or dilation {dilation}, got {output_padding}"
            )
        modes = ("zeros",)
    elif isinstance(padding, str):
        checks.one_of("padding", padding, ("same", "valid"), ", one int or two" if many == 2 else " or an int")
        if padding == "same" and max(steps) > 1:
            raise ValueError(f"padding: expected no 'same' with a stride, got stride {stride}")
    else:
        checks.sizes("padding", padding, 0, many)
    if in_channels % groups or out_channels % groups:
        raise ValueError(
            f"groups: expected a divisor of {in_channels} input and {out_channels} output channels, got {groups}"
        )
    checks.one_of("padding_mode", padding_mode, modes)
    checks.elements("in_channels, out_channels", (out_channels, in_channels // groups, *kernel))


class ConvolutionLayer(CarriesGroups):
    """What all convolutions have in front of torch's class: checked arguments, and channel groups."""

    torchs: ClassVar[type[tnn.Module]]
    """The class of torch that computes all channels."""
    spatial: ClassVar[int]
    """Dimensions behind the channels."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *arguments,
        in_group: ChannelGroup | None = None,
        out_group: ChannelGroup | None = None,
        **named,
    ) -> None:
        given = checks.weights(self.torchs, in_channels, out_channels, *arguments, **named)
        _check_arguments(self.spatial, **given)
        check_group("in_group", in_group, in_channels)
        check_group("out_group", out_group, out_channels)
        super().__init__(in_channels, out_channels, *arguments, **named)
        self.in_group, self.out_group = in_group, out_group

    @property
    def shapes(self) -> str:
        """Of inputs, in words."""
        space = "L" if self.spatial == 1 else "H, W"
        return f"[M, C, {space}] or [T, N, C, {space}]"

    def check_input(self, x: Tensor) -> None:
        """Whether x is frames or a sequence of them."""
        if not isinstance(x, Tensor) and checks.is_traced(x):
            return
        if not isinstance(x, Tensor) or x.dim() - self.spatial not in (2, 3):
            kind = ValueError if isinstance(x, Tensor) else TypeError
            raise kind(f"x: expected a tensor {self.shapes}, got {checks.describe(x)}")

    def check_channels(self, x: Tensor) -> None:
        """Whether x has the active input channels, or all."""
        dim = x.dim() - 1 - self.spatial
        active = self.in_channels if self.in_group is None else self.in_group.width
        if x.shape[dim] not in (active, self.in_channels):
            raise ValueError(f"x: expected {active} active input channels in dimension {dim}, got {checks.describe(x)}")

    def extra_repr(self) -> str:
        groups = {"in_group": self.in_group, "out_group": self.out_group}
        return ", ".join([super().extra_repr(), *(f"{k}={g}" for k, g in groups.items() if g is not None)])


class ChannelConv(FollowsAnalog, ConvolutionLayer):
    """A convolution over one dimension or two. One over one dimension is computed as one of maps of a single row: views
    of its input and its weight, by the same paths."""

    _last_asked: tuple[tuple, bool] | None = None
    """See :meth:`_is_plain`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *arguments,
        spike_input: bool | None = None,
        backend: str | None = None,
        path: str | None = None,
        **named,
    ) -> None:
        F.check_backend(backend)
        F.check_path(path)
        if spike_input is not None:
            checks.boolean("spike_input", spike_input)
        super().__init__(in_channels, out_channels, *arguments, **named)
        self.spike_input, self.backend, self.path = spike_input, backend, path

    def as_maps(self, z: Tensor) -> Tensor:
        """A view of an input or weight with two spatial dimensions."""
        return z if self.spatial == 2 else z.unsqueeze(-2)

    @property
    def geometry(self) -> Geometry:
        """Of the convolution of maps itself, whose zeros are the same on both sides; any other border is put around its
        input first."""
        border = self._reversed_padding_repeated_twice  # of the last dimension first
        zeros = self.padding_mode == "zeros" and border[::2] == border[1::2]
        padding = tuple(border[::-2]) if zeros else (0,) * self.spatial
        return Geometry(_pair(self.stride, 1), _pair(padding, 0), _pair(self.dilation, 1), self.groups)

    def check_input(self, x: Tensor) -> None:
        """What :func:`sca_kernels.functional.channel_conv2d` can't check, since weights are gathered, a border is put
        around x before, and one dimension is seen as two."""
        super().check_input(x)
        if not isinstance(x, Tensor):
            return
        grouped = self.in_group is not None or self.out_group is not None
        if grouped and x.device != self.weight.device:
            raise ValueError(f"x: expected a tensor on {self.weight.device}, got {checks.describe(x)}")
        border = self._reversed_padding_repeated_twice
        zeros = self.padding_mode == "zeros" and border[::2] == border[1::2]
        if zeros and self.spatial == 2:
            return
        if not checks.is_plain(x) or x.dtype not in checks.DTYPES:
            raise TypeError(f"x: expected a floating-point tensor, got {checks.describe(x)}")
        if self.spatial == 1:
            self.check_channels(x)
            if x.shape[-1] + sum(border) <= self.dilation[0] * (self.kernel_size[0] - 1):
                raise ValueError(f"x: expected room for a kernel of {self.kernel_size}, got shape {tuple(x.shape)}")
        if 0 in x.shape[-1 - self.spatial :]:
            raise ValueError(f"x: expected a map and its channels, got {tuple(x.shape)}")
        if self.padding_mode in ("reflect", "circular"):
            least = self.padding_mode == "reflect"  # whose border does not repeat the edge
            sides = zip(border[::2], border[1::2], x.shape[: -1 - self.spatial : -1], strict=True)
            if any(max(first, last) + least > size for first, last, size in sides):
                around = (*border[2:], *border[:2])
                raise ValueError(
                    f"x: expected a map with room for the {self.padding_mode} border {around}, got {tuple(x.shape)}"
                )

    def forward(self, x: Tensor) -> Tensor:
        """x [M, A, *S] or [T, N, A, *S], A the active input channels (or all: the active ones are then selected) -> the
        same with the active output channels."""
        weight = self.weight
        inputs = None if self.in_group is None else self.in_group.index(weight.device)
        outputs = None if self.out_group is None else self.out_group.index(weight.device)
        if inputs is None and outputs is None and self._is_plain(x, weight):
            return self.by_torch(x, weight)
        return self._of_channels(x, inputs, outputs)

    @_naming_itself
    def _of_channels(self, x: Tensor, inputs: Tensor | None, outputs: Tensor | None) -> Tensor:
        """:meth:`forward` with the indices of the active channels, None for all."""
        self.check_input(x)
        full_input = inputs is not None and x.shape[-1 - self.spatial] == self.in_channels
        geometry, border = self.geometry, self._reversed_padding_repeated_twice
        if self.padding_mode != "zeros":
            frames = tnn.functional.pad(x.flatten(0, -2 - self.spatial), border, mode=self.padding_mode)
            x = frames.unflatten(0, x.shape[: -1 - self.spatial])
        elif any(border) and not any(geometry.padding):
            x = tnn.functional.pad(x, border)
        y = F.channel_conv2d(
            self.as_maps(x),
            self.as_maps(self.weight),
            self.bias,
            *geometry,
            inputs,
            outputs,
            full_input=full_input,
            spike_input=self.spike_input if self.analog is None else False,
            backend=self.backend,
            path=self.path,
        )
        return y if self.spatial == 2 else y.squeeze(-2)

    def _is_plain(self, x: Tensor, weight: Tensor) -> bool:
        """Whether this is torch's layer on frames of the right kind: what :func:`F.channel_conv2d` would find, too,
        in ten times the time, and small layers take little longer than that. The last answer is kept with what it
        depends on: between two convolutions, whose data push it out of the caches, each line here takes long."""
        if type(x) is not Tensor or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        if self.spike_input and self.analog is None and torch.is_grad_enabled() and weight.requires_grad:
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
        if x.dim() != 2 + self.spatial:
            return False
        maps, last = self.as_maps(x), not x.is_contiguous()
        if last and not maps.is_contiguous(memory_format=torch.channels_last):
            return False
        sizes = _pair(self.stride, 1), _pair(self.padding, 0), _pair(self.dilation, 1)
        return paths.is_dense(x.device, dtype, maps.shape, last, self.as_maps(weight).shape, *sizes, self.groups)

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name != "_last_asked":
            self.__dict__["_last_asked"] = None


def _pair(sizes: Sequence[int], of_rows: int) -> Sequence[int]:
    """The sizes of two dimensions, where there is but one those of a single row in front."""
    return sizes if len(sizes) == 2 else (of_rows, *sizes)


class ChannelConv2d(ChannelConv, tnn.Conv2d):
    """torch.nn.Conv2d that computes the active channels of its groups alone; same parameters, same state_dict, full
    size. x is [M, A, H, W] or [T, N, A, H, W].

    Args:
        in_group, out_group: channel groups of the input and the output; None: all channels, always.
        spike_input: whether the input holds zeros and ones only, see :func:`sca_kernels.functional.channel_conv2d`.
        backend: see :func:`sca_kernels.functional.neuron`.
        path: see :func:`sca_kernels.functional.channel_conv2d`.
        All others as in torch.nn.Conv2d.
    """

    torchs, spatial = tnn.Conv2d, 2

    def by_torch(self, x: Tensor, weight: Tensor) -> Tensor:
        """Frames by torch's own convolution."""
        return torch.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ChannelConv1d(ChannelConv, tnn.Conv1d):
    """torch.nn.Conv1d that computes the active channels of its groups alone; same parameters, same state_dict, full
    size. x is [M, A, L] or [T, N, A, L].

    Args:
        All as in :class:`ChannelConv2d` and torch.nn.Conv1d.
    """

    torchs, spatial = tnn.Conv1d, 1

    def by_torch(self, x: Tensor, weight: Tensor) -> Tensor:
        """Frames by torch's own convolution: of maps where channels lie side by side, which the one over one dimension
        copies apart first."""
        if x.is_contiguous():
            return torch.conv1d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        sizes = (1, *self.stride), (0, *self.padding), (1, *self.dilation)
        return torch.conv2d(x.unsqueeze(-2), weight.unsqueeze(-2), self.bias, *sizes, self.groups).squeeze(-2)
