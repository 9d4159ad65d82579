"""Accuracy, firing rate and speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from sca_kernels import nn as snn

from ..cost.layers import connections, total
from ..structure.attach import has_groups
from ..structure.groups import find_groups


def autocast(precision: str, device: str) -> AbstractContextManager:
    """The context that a forward pass of this precision runs in."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, dtype=getattr(torch, precision))


def correct(logits: Tensor, labels: Tensor) -> int:
    """How many of ``labels`` ``[N]`` are predicted by ``logits`` ``[N, classes]``, or the time mean of
    ``[T, N, classes]``."""
    mean = logits.mean(0) if logits.dim() == 3 else logits
    return int((mean.argmax(1) == labels).sum())


def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str = "float32") -> float:
    """Share of examples that the model predicts, in [0, 1]; in eval mode, with the mode restored."""
    hits, seen = hits_and_seen(model, batches, precision)
    return hits / seen


@torch.inference_mode()
def hits_and_seen(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str) -> tuple[int, int]:
    """How many examples the model predicts, of how many; in eval mode, with the mode restored."""
    was_training = model.training
    model.eval()
    hits = seen = 0
    for images, labels in batches:
        with autocast(precision, images.device.type):
            hits += correct(model(images), labels)
        seen += len(labels)
    model.train(was_training)
    return hits, seen


def connectivity(model: nn.Module) -> float:
    """Weights between active channels / all weights of convolutions and linear layers, in (0, 1]."""
    groups = find_groups(model)
    layers = connections(model, groups)
    active = {name: members.group.mask() for name, members in groups.items()}
    return total(layers, active) / total(layers, {name: torch.ones_like(mask) for name, mask in active.items()})


class FiringRate:
    """Spikes of each neuron layer and the (neuron, step, sample) positions at which they could have been, read off the
    counts that the neurons keep anyway. A layer is called as its channel group where no other layer shares that, else
    by its module's name.

    Neurons without an :class:`sca_kernels.nn.Activity` are given one.
    """

    def __init__(self, model: nn.Module) -> None:
        groups = find_groups(model).items() if has_groups(model) else ()
        alone = {next(iter(members.neurons)): name for name, members in groups if len(members.neurons) == 1}
        self._neurons = {alone.get(name, name): m for name, m in model.named_modules() if hasattr(m, "activity")}
        for neuron in self._neurons.values():
            neuron.activity = neuron.activity or snn.Activity(training_only=True)
        self._seen: dict[str, tuple[int, int]] = {}

    def mark(self) -> None:
        """Count from here on. Needed after anything that reset the counts (a pruning step)."""
        self._seen = self._totals()

    def since_mark(self) -> tuple[int, int]:
        """Spikes and positions of all layers since the last mark."""
        counts = self.layers_since_mark().values()
        return sum(spikes for spikes, _ in counts), sum(positions for _, positions in counts)

    def layers_since_mark(self) -> dict[str, tuple[int, int]]:
        """Layer -> spikes and positions since the last mark."""
        counts = {}
        for name, (spikes, positions) in self._totals().items():
            spikes_before, positions_before = self._seen.get(name, (0, 0))
            counts[name] = spikes - spikes_before, positions - positions_before
        return counts

    def _totals(self) -> dict[str, tuple[int, int]]:
        counted = {n: m.activity for n, m in self._neurons.items() if m.activity.positions is not None}
        if not counted:
            return {}
        # one transfer for all layers
        sums = torch.stack([torch.stack((a.spike_count.sum(), a.positions.sum())) for a in counted.values()])
        return {name: (spikes, positions) for name, (spikes, positions) in zip(counted, sums.tolist(), strict=True)}


@dataclass(frozen=True)
class Speed:
    """Samples per second over several rounds: median, 20th and 80th percentile."""

    median: float
    p20: float
    p80: float
    rounds: int

    def to_dict(self) -> dict[str, float]:
        """Plain values, for JSON."""
        return asdict(self)


def compare_speed(
    work: dict[str, Callable[[], object]], samples: int, device: str, max_rounds: int = 15, max_seconds: float = 15.0
) -> dict[str, Speed]:
    """Time several pieces of work in turn, so that whatever else the machine does meets them alike.

    Args:
        work: name -> a call that processes ``samples`` samples.
        samples: per call.
        device: waited for before each reading of the clock.
        max_rounds, max_seconds: ends after so many rounds, or when the time is up and there were at least 3.

    Returns:
        name -> speed. One untimed round goes first.
    """
    synchronise = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    rates: dict[str, list[float]] = {name: [] for name in work}
    for call in work.values():
        call()
    begin = time.perf_counter()
    for finished in range(max_rounds):
        if finished >= 3 and time.perf_counter() - begin > max_seconds:
            break
        for name, call in work.items():
            synchronise()
            start = time.perf_counter()
            call()
            synchronise()
            rates[name].append(samples / (time.perf_counter() - start))
    return {name: _speed(values) for name, values in rates.items()}


def _speed(rates: list[float]) -> Speed:
    fifths = statistics.quantiles(rates, n=5, method="inclusive")
    return Speed(statistics.median(rates), fifths[0], fifths[-1], len(rates))
