"""Passes through a model that leave no trace."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from .snapshot import Snapshot

__all__ = ["untouched"]


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back, at exit, what forward passes change: buffers, activity sums, neuron states, the random states of torch,
    NumPy and Python, what else modules hold (see :class:`Snapshot`), and autocast's copies of the parameters.

    Within, no activity is recorded and stateful neurons start afresh.
    """
    held = Snapshot(model.modules())
    neurons = [module for module in model.modules() if {"stateful", "v", "v_seq"} <= vars(module).keys()]
    gpus = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    others = np.random.get_state(legacy=False), random.getstate()  # noqa: NPY002  the state that code may draw from
    try:
        for neuron in neurons:
            neuron.v = neuron.v_seq = None
            if hasattr(neuron, "activity"):
                neuron.activity = None
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        np.random.set_state(others[0])  # noqa: NPY002
        random.setstate(others[1])
        held.restore()
        # torch 2.9 keeps those of a pass without gradients for one with them, which then has none.
        torch.clear_autocast_cache()
