"""A resident data set as loaders: what a training loop iterates over, ours or one's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dataset import Batch, Dataset

__all__ = ["ShuffledLoader", "SplitLoader"]


class ShuffledLoader:
    """The training split, a shuffled epoch each time that it is iterated over; see :meth:`Dataset.train_loader`.

    Attributes:
        dataset, batch_size: as given.
        epoch: which one the next iteration gives; :meth:`set_epoch` changes it.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int, augmentation: dict[str, Any]) -> None:
        self.dataset, self.batch_size = dataset, batch_size
        self.epoch = 0
        self._seed, self._augmentation = seed, augmentation

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.dataset.train) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches(self.epoch)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches ``start, start + 1, ...`` of an epoch; those before are not made."""
        return self.dataset.train_batches(
            self.batch_size, seed=self._seed, epoch=epoch, start=start, **self._augmentation
        )


class SplitLoader:
    """A split in its own order and without augmentation; see :meth:`Dataset.loader`."""

    def __init__(self, dataset: Dataset, split: str, batch_size: int) -> None:
        self.dataset, self.batch_size = dataset, batch_size
        self._split = split

    def __len__(self) -> int:
        return -(-len(getattr(self.dataset, self._split)) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return self.dataset.batches(self._split, self.batch_size)
