"""What an epoch adds up, and the line of the log that it becomes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ["EpochSums"]


@dataclass
class EpochSums:
    """What an unfinished epoch has added up so far; ``spikes`` and ``positions`` by neuron layer."""

    batches: int = 0
    samples: int = 0
    loss: float = 0.0
    correct: int = 0
    spikes: dict[str, int] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def add(self, samples: int, loss: float, correct: int, layers: Iterable[str], fired: Sequence[float]) -> None:
        """Count a batch in.

        Args:
            samples, correct: how many it had, and how many of them were predicted.
            loss: its mean.
            layers, fired: the neuron layers, and their spikes and positions by turns.
        """
        self.batches += 1
        self.samples += samples
        self.loss += loss * samples
        self.correct += correct
        for name, spikes, positions in zip(layers, fired[::2], fired[1::2], strict=True):
            self.spikes[name] = self.spikes.get(name, 0) + int(spikes)
            self.positions[name] = self.positions.get(name, 0) + int(positions)

    @property
    def averages(self) -> dict[str, float]:
        """Per sample, per position, per second."""
        return {
            "loss": self.loss / self.samples,
            "train_accuracy": self.correct / self.samples,
            "firing_rate": sum(self.spikes.values()) / max(1, sum(self.positions.values())),
            "samples_per_second": self.samples / self.seconds,
        }

    @property
    def firing_rates(self) -> dict[str, float]:
        """Per neuron layer."""
        return {name: spikes / max(1, self.positions[name]) for name, spikes in self.spikes.items()}
