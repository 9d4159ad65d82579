"""What a pass through a network keeps in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def saved_bytes(function: Callable[[], object], parameters: Sequence[Tensor] = ()) -> int:
    """Bytes of the distinct storages that autograd keeps for the backward of ``function``, without the parameters'."""
    storages: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        alive.append(tensor)  # a freed storage's address may be handed out again
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    for parameter in parameters:
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(storages.values())


class Allocated(NamedTuple):
    """Bytes of tensors beyond those that there were before a call: at its peak, and at its end, its result kept."""

    peak: int
    held: int


def allocated(function: Callable[[], object], device: str = "cpu") -> Allocated:
    """Run ``function`` once and count what torch allocates on the device meanwhile: by the caching allocator's own
    counters on CUDA, by the profiler's record of every allocation elsewhere. What libraries allocate by themselves is
    in neither.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = function()
        torch.cuda.synchronize(device)
        peak, held = torch.cuda.max_memory_allocated(device), torch.cuda.memory_allocated(device)
        del result
        return Allocated(peak - before, held - before)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = function()
    del result
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return Allocated(peak, held)
