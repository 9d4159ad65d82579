"""Which way a convolution runs: what was measured, per class of device.

* ``dense``: all channels are active, and torch's own convolution runs on the whole weight, with nothing of ours around
  it: its input is kept for the backward as it is, unless bits are asked for.
* ``gathered``: torch's own convolution (oneDNN, cuDNN) on the gathered weight, at the active width.
* ``winograd``: CPU kernels with 4/9 of the multiplications, at the active width, all channels or some; what is not in
  channels_last is copied there and its result back.
* ``implicit``: Triton kernels at the active width, whose accesses are all of 16 bytes.

:data:`RULES` holds what measurements have shown, most specific first; where they are silent, torch's own runs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .channels import Geometry, output_size

NEEDS = {
    "gathered": "any convolution",
    "winograd": "a float32 3x3 convolution of 1 group, stride 1, dilation 1, padding up to 2",
    "implicit": "x in channels_last, 1 group or a depthwise convolution, and multiples of 8 active channels (of 4 in "
    "float32): accesses of 16 bytes",
}
"""The paths that can be named, and what each takes."""

_ACCESS_BYTES = 16


class Rule(NamedTuple):
    """Convolutions that a measurement speaks for, and the path that it found fastest.

    Attributes:
        device_class: as :func:`device_class` names it.
        narrowest: active channels of the narrower side, at least.
        widest: channels of the wider side, active and dormant, at most.
        densest: active / all channels of the input times the same of the output, at most.
        positions: of the output, all images together, at least.
        side: the shorter one of the output's map, at least.
        channels_last: the layout of the input; None: either.
        source: where the figures are.
    """

    device_class: str
    dtype: torch.dtype
    narrowest: int
    widest: int
    densest: float
    positions: int
    side: int
    channels_last: bool | None
    path: str
    source: str


_A3 = "benchmarks/results/amd-epyc-family-26-model-2-2-cores/A3.json"
_A8 = "benchmarks/results/amd-epyc-family-26-model-2-2-cores/A8.json"
RULES = {
    "cpu": (
        Rule("cpu", torch.float32, 8, 512, 1.0, 128, 2, True, "winograd", _A3),
        Rule("cpu", torch.float32, 64, 512, 1.0, 512, 2, False, "winograd", _A8),
        Rule("cpu", torch.float32, 1, 256, 1.0, 1, 1, None, "gathered", _A3),
    ),
    "cuda": (),  # benchmarks/gpu.py, G3: not measured
}
"""By type of device."""


class Choice(NamedTuple):
    """A path, and the reason."""

    path: str
    why: str


def device_class(device: torch.device) -> str:
    """Devices whose measurements agree: ``cpu``, or a GPU's compute capability, as in ``sm_90``."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def per_access(dtype: torch.dtype) -> int:
    """Channels of which the path ``implicit`` takes multiples."""
    return _ACCESS_BYTES // dtype.itemsize


def possible(
    weight: Sequence[int], geometry: Geometry, dtype: torch.dtype, channels_last: bool, active: Sequence[int]
) -> list[str]:
    """The paths that a convolution can take, see :data:`NEEDS`; its weight's shape, whether its input is in
    channels_last, and the active channels of its input and its output."""
    stride, padding, dilation, groups = geometry
    found = ["gathered"]
    plain = groups == 1 and all(step == 1 for step in (*stride, *dilation)) and max(padding) <= 2
    if plain and tuple(weight[2:]) == (3, 3) and dtype == torch.float32:
        found.append("winograd")
    multiple = per_access(dtype)
    whole = active[0] % multiple == active[1] % multiple == 0
    if channels_last and whole and (groups == 1 or weight[1] == 1):
        found.append("implicit")
    return found


def refusal(
    path: str,
    weight: Sequence[int],
    geometry: Geometry,
    dtype: torch.dtype,
    channels_last: bool,
    active: Sequence[int],
) -> ValueError:
    """The error for a path that is not among the :func:`possible` ones."""
    multiple = per_access(dtype)
    narrow = [width for width in active if width % multiple]
    if path == "implicit" and narrow:
        width = narrow[0]
        return ValueError(
            f"path: 'implicit' expected a multiple of {multiple} active channels in {dtype}, got {width}: "
            f"{-(-width // multiple) * multiple} would do; SCAScheduler(round_to={multiple}) keeps to multiples"
        )
    kernel, layout = "x".join(map(str, weight[2:])), "channels_last" if channels_last else "another layout"
    needed = NEEDS.get(path, f"to be one of {', '.join(NEEDS)}")
    return ValueError(f"path: {path!r} expected {needed}; got {dtype}, {layout}, a {kernel} kernel, {geometry}")


def measured(
    device: torch.device,
    dtype: torch.dtype,
    channels: Sequence[int],
    active: Sequence[int],
    paths: Sequence[str],
    output: Sequence[int] | None = None,
    channels_last: bool = True,
) -> Choice:
    """The best of ``paths`` for a convolution with so many channels, and so many active ones, at its input and its
    output, so many images of that height and width at its output (None: many, large), and an input in that layout."""
    widest, density = max(channels), math.prod(active) / math.prod(channels)
    positions, side = (math.inf, math.inf) if output is None else (math.prod(output), min(output[1:]))
    for rule in RULES.get(device.type, ()):
        fits = dtype == rule.dtype and min(active) >= rule.narrowest and widest <= rule.widest
        fits = fits and rule.channels_last in (None, channels_last)
        fits = fits and positions >= rule.positions and side >= rule.side
        if fits and density <= rule.densest and rule.path in paths and device_class(device) == rule.device_class:
            if rule.path == "gathered" and density == 1:
                break
            return Choice(rule.path, f"measured: {rule.source}")
    if density == 1:
        return Choice("dense", "all channels are active")
    return Choice("gathered", f"not measured for {dtype}, {widest} channels on {device.type}: the default")


@functools.lru_cache(maxsize=1024)
def is_dense(
    device: torch.device,
    dtype: torch.dtype,
    x: tuple[int, ...],
    channels_last: bool,
    weight: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> bool:
    """Whether shapes and geometry make a convolution of all channels for which the path ``dense`` is the choice."""
    geometry = Geometry(stride, padding, dilation, groups)
    sizes = weight[1] * groups, weight[0]
    if len(x) != 4 or x[1] != sizes[0] or min(*stride, *dilation) < 1 or min(padding) < 0:
        return False
    output = x[0], *output_size(x, weight, geometry)
    if min(*output, *x) < 1:
        return False
    channels_last = channels_last or x[1] == 1 or x[2:] == (1, 1)
    able = possible(weight, geometry, dtype, channels_last, sizes)
    return measured(device, dtype, sizes, sizes, able, output, channels_last).path == "dense"
