"""What a trained network reaches and costs on the test images: measured in one way, whoever asks."""

from __future__ import annotations

from torch import nn

from ..cost import CostReport, report_cost
from ..data import Dataset
from .config import TrainConfig
from .metrics import accuracy

__all__ = ["COUNTED_IMAGES", "count_cost", "counted_on", "measure_accuracy"]

#: Operations are counted on the first so many test images: their mean settles long before.
COUNTED_IMAGES = 1024
# Images of a test batch, at most. The size is the same in every measurement of a run: float sums depend on it, and one
# that falls on the other side of a threshold is another spike.
_MOST = 256


def measure_accuracy(model: nn.Module, dataset: Dataset, config: TrainConfig, batch_size: int | None = None) -> float:
    """Share of all test images that the model predicts, in the run's precision and, without a ``batch_size``, in the
    batches that its end was measured in."""
    return accuracy(model, dataset.test_batches(batch_size or _batch_size(config)), config.precision)


def count_cost(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    batch_size: int | None = None,
    max_batches: int | None = None,
) -> CostReport:
    """What the model costs on the first :data:`COUNTED_IMAGES` test images, or on ``max_batches`` batches.

    Args:
        model: at its full size, its dormant channels among the others: connectivity is a share of the dense network.
        dataset, config: of the run.
        batch_size: images at a time; None: as in :func:`measure_accuracy`.
        max_batches: count on so many batches of all test images instead.
    """
    counted = dataset.limited(test=COUNTED_IMAGES) if max_batches is None else dataset
    return report_cost(model, counted.test_batches(batch_size or _batch_size(config)), config.time_steps, max_batches)


def counted_on(dataset: Dataset, cost: CostReport | None) -> str:
    """What accuracy and costs, where there are any, were measured on, in words."""
    told = f"accuracy on {len(dataset.test):,} test {dataset.noun}"
    if dataset.told:
        told += f" ({dataset.told})"
    if cost is None:
        return told
    counted = "all" if cost.samples == len(dataset.test) else f"the first {cost.samples:,}"
    first = cost.layers[0]
    often = "once per image"
    if first.presentations > 1:
        often = f"at every time step, its input {'spikes' if first.spiking else 'values, no spikes: MACs'}"
    return f"{told}; SynOps and energy on {counted} of them, the first convolution {often}"


def _batch_size(config: TrainConfig) -> int:
    return min(4 * config.batch_size, _MOST)
