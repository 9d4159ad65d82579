"""Devices and backends that the kernel tests run on; none is collected while a twin of a neuron is missing."""

from __future__ import annotations

import pytest
import torch

from sca_kernels.backends import registry
from sca_kernels.testing import missing_twins

if missing := missing_twins():
    raise pytest.UsageError("\n".join(missing))


def targets() -> list:
    """(backend, device) pairs: every backend that can run float32 on a device of this machine."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [
        pytest.param((name, device), id=f"{name}-{device}")
        for name, backend in registry().items()
        for device in devices
        if backend.supports(torch.device(device), torch.float32)[0]
    ]


@pytest.fixture(params=targets())
def target(request) -> tuple[str, str]:
    """(backend name, device)."""
    return request.param
