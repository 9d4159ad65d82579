"""Whether what was packed as spikes holds zeros and ones only: found on a device, told on the host, without waiting."""

from __future__ import annotations

import torch
from torch import Tensor

_MESSAGE = "spikes: expected zeros and ones only, got another value"

_flags: dict[torch.device, Tensor] = {}


def _is_waited_for(device: torch.device) -> bool:
    """Whether a kernel has run when its launch returns."""
    return device.type == "cpu"


def flag(device: torch.device) -> Tensor:
    """int32 [1], where kernels write 0 if they meet another value. For a CUDA device it lies in pinned memory of the
    host, which both see: a kernel that finds nothing doesn't touch it, and nobody copies it."""
    if device not in _flags:
        with torch.inference_mode(False):
            _flags[device] = torch.ones(1, dtype=torch.int32, device="cpu", pin_memory=device.type == "cuda")
    return _flags[device]


def check_launched(device: torch.device) -> None:
    """After a launch: ValueError where its result is known."""
    if _is_waited_for(device):
        _check(device, _MESSAGE)


def check_earlier(device: torch.device) -> None:
    """Before a launch: ValueError if a device has found another value in a call before. The error comes late, but the
    process and its CUDA context stay as they were."""
    if device in _flags:
        _check(device, f"{_MESSAGE}, in an earlier call on {device}, whose gradients of the weight are wrong")


def _check(device: torch.device, message: str) -> None:
    if not _flags[device].item():
        _flags[device].fill_(1)
        raise ValueError(message)
