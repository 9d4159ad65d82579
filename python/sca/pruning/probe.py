"""How a scheduler reaches beyond its own state: passes through a model that leave no trace, and sums over ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

__all__ = ["sum_over_ranks", "untouched"]


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back, at exit, what forward passes change: buffers, activity sums, neuron states, torch's random state.

    Within, no activity is recorded and stateful neurons start afresh.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    neurons = [module for module in model.modules() if {"activity", "stateful", "v"} <= vars(module).keys()]
    states = [(neuron, neuron.activity, neuron.v) for neuron in neurons]
    gpus = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    try:
        for neuron in neurons:
            neuron.activity = neuron.v = None
        with torch.random.fork_rng(devices=gpus):
            yield
    finally:
        for neuron, activity, v in states:
            neuron.activity, neuron.v = activity, v
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def sum_over_ranks(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums over all ranks of torch.distributed (the tensors themselves without it), on the CPU.

    Every rank must hold the same names and shapes; one collective for each dtype.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return {name: tensor.cpu() for name, tensor in tensors.items()}
    summed: dict[str, Tensor] = {}
    for dtype in (torch.int64, torch.float64):
        names = sorted(name for name, tensor in tensors.items() if tensor.dtype == dtype)
        if names:
            flat = torch.cat([tensors[name].flatten() for name in names])
            torch.distributed.all_reduce(flat)
            parts = flat.cpu().split([tensors[name].numel() for name in names])
            summed.update({name: part.view_as(tensors[name]) for name, part in zip(names, parts, strict=True)})
    return summed
