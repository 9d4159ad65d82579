"""Devices and backends that the kernel tests run on; none is collected while a twin of a neuron is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from sca_kernels.backends import registry
from sca_kernels.gpu import plan
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


@pytest.fixture
def planned(monkeypatch) -> Iterator[Callable[..., None]]:
    """Sets constants of the plan of GPU kernels, so that small tensors are cut as large ones are."""
    given = {name: getattr(plan, name) for name in ("_MAX_PROGRAMS", "_GROUPED_ABOVE")}

    def constants(**values: int) -> None:
        for name, value in {**given, **values}.items():
            monkeypatch.setattr(plan, name, value)
        plan._tiles.cache_clear()

    yield constants
    plan._tiles.cache_clear()
