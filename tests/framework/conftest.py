"""Framework tests run networks of a few channels."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch

from sca.pruning.optimizer import _Block
from sca.training import graph, obstacles
from tests.framework.recorded import Recorder


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """One thread: on busy cores, two of them wait for each other 50 times longer than such networks compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    """The device of all steps of a test, whose blocks of weights are moved by torch's operators, as on a GPU."""
    found = Recorder()
    monkeypatch.setattr(graph, "capture_of", lambda device: found)
    monkeypatch.setattr(_Block, "_is_weight", lambda block, full: False)
    monkeypatch.setattr(obstacles, "_named", set())
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_get_capturable_supported_devices", lambda *_: ["cpu"])
    return found
