"""Which way a channel-sparse convolution runs: what was measured, per class of device.

* ``dense``: all channels are active, and torch's own convolution runs on the whole weight.
* ``gathered``: torch's own convolution (oneDNN, cuDNN) on the gathered weight, at the active width.
* ``implicit``: the Triton kernels that read and write activations through the index lists.

:data:`RULES` holds what measurements have shown, most specific first; where they are silent, the gathered path runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch


class Rule(NamedTuple):
    """Convolutions that a measurement speaks for, and the path that it found fastest.

    Attributes:
        device_class: as :func:`device_class` names it.
        widest: channels of the wider side, active and dormant, at most.
        densest: active / all channels of the input times the same of the output, at most.
        source: where the figures are.
    """

    device_class: str
    dtype: torch.dtype
    widest: int
    densest: float
    path: str
    source: str


RULES = {
    "cpu": (Rule("cpu", torch.float32, 256, 1.0, "gathered", "benchmarks/results/amd-epyc-2-cores/A3.json"),),
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


def measured(device: torch.device, dtype: torch.dtype, channels: Sequence[int], active: Sequence[int]) -> Choice:
    """The path for a convolution with so many channels, and so many active ones, at its input and its output."""
    widest, density = max(channels), math.prod(active) / math.prod(channels)
    if density == 1:
        return Choice("dense", "all channels are active")
    for rule in RULES.get(device.type, ()):
        fits = dtype == rule.dtype and widest <= rule.widest and density <= rule.densest
        if fits and device_class(device) == rule.device_class:
            return Choice(rule.path, f"measured: {rule.source}")
    return Choice("gathered", f"not measured for {dtype}, {widest} channels on {device.type}: the default")
