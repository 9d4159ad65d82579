"""Passes through a model that leave no trace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

__all__ = ["untouched"]


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back, at exit, what forward passes change: buffers, activity sums, neuron states, torch's random state.

    Within, no activity is recorded and stateful neurons start afresh.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    neurons = [module for module in model.modules() if {"activity", "stateful", "v"} <= vars(module).keys()]
    states = [dict(vars(neuron)) for neuron in neurons]
    gpus = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    try:
        for neuron in neurons:
            neuron.activity = neuron.v = None
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        for neuron, state in zip(neurons, states, strict=True):
            vars(neuron).update(state)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
