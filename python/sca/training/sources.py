"""Where a training loop's batches come from: our resident data sets, or any iterable, such as torch's DataLoader."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..data.dataset import Batch, generator_at
from ..data.loaders import ShuffledLoader, SplitLoader
from .distributed import Ranks

__all__ = ["epoch_of", "is_resident", "require_loader", "test_batches"]


def is_resident(loader: Any) -> bool:
    """Whether it is a loader of ours, of a data set on the device: each process sees whole batches, of which it takes a
    part. Any other gives each process its own part."""
    return isinstance(loader, ShuffledLoader | SplitLoader)


def require_loader(name: str, loader: Any, needs_length: bool = False) -> Any:
    """The loader itself.

    Raises:
        TypeError: it can't be iterated over again and again, or lacks a length that is needed.
    """
    if not isinstance(loader, Iterable) or isinstance(loader, Iterator):
        advice = "; an iterator is used up after an epoch" if isinstance(loader, Iterator) else ""
        raise TypeError(f"{name}: expected a loader of batches, got {type(loader).__name__}{advice}")
    if needs_length:
        try:
            batches = len(loader)
        except TypeError as error:
            raise TypeError(
                f"{name}: expected a loader with a length, the number of batches in an epoch, got "
                f"{type(loader).__name__} without one"
            ) from error
        if batches < 1:
            raise ValueError(f"{name}: expected at least one batch in an epoch, got none")
    return loader


def epoch_of(loader: Any, epoch: int, start: int, seed: int, device: torch.device) -> Iterator[Batch]:
    """The batches ``start, start + 1, ...`` of an epoch, on ``device``.

    A foreign loader is told the epoch (``set_epoch`` of itself, its sampler or its batch sampler). What it draws from
    torch's global generator on the CPU comes from a stream of the epoch's own, which leaves the generator as it was; so
    the order of ``DataLoader(shuffle=True)`` is the same whatever ran before. The batches before ``start`` are made and
    dropped.

    Raises:
        TypeError, ValueError: a batch is no pair of images and labels ``[N]``.
    """
    if isinstance(loader, ShuffledLoader):
        for images, labels in loader.batches(epoch, start):
            yield images.to(device), labels.to(device)
        return
    for part in _told_of_epochs(loader):
        part.set_epoch(epoch)
    batches = _Stream(loader, generator_at(seed, epoch).get_state())
    for batch in itertools.islice(batches, start, None):
        yield _on_device("train", batch, device)


def test_batches(name: str, loader: Any, device: torch.device, ranks: Ranks) -> Iterator[Batch]:
    """The batches of a loader that this process measures, on ``device``: every so many of ours, all of a foreign one's.

    Raises:
        TypeError, ValueError: a batch is no pair of images and labels ``[N]``.
    """
    own = itertools.islice(loader, ranks.rank, None, ranks.size) if is_resident(loader) else loader
    for batch in own:
        yield _on_device(name, batch, device)


def _told_of_epochs(loader: Any) -> Iterator[Any]:
    """Each of the loader and its samplers that has ``set_epoch``."""
    parts = [loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)]
    parts.append(getattr(parts[-1], "sampler", None))
    seen: set[int] = set()
    for part in parts:
        if hasattr(part, "set_epoch") and id(part) not in seen:
            seen.add(id(part))
            yield part


class _Stream:
    """An iterator over a loader, during whose turns torch's global generator is in states of the loader's own."""

    def __init__(self, loader: Iterable[Any], state: Tensor) -> None:
        self._state = state
        self._iterator = self._turn(lambda: iter(loader))

    def __iter__(self) -> _Stream:
        return self

    def __next__(self) -> Any:
        return self._turn(lambda: next(self._iterator))

    def _turn(self, call: Any) -> Any:
        ours = torch.get_rng_state()
        torch.set_rng_state(self._state)
        try:
            return call()
        finally:
            self._state = torch.get_rng_state()
            torch.set_rng_state(ours)


def _on_device(name: str, batch: Any, device: torch.device) -> Batch:
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        shown = [type(part).__name__ for part in batch] if isinstance(batch, tuple | list) else type(batch).__name__
        raise TypeError(f"{name}: expected batches (images, labels) of two tensors, got {shown}")
    images, labels = batch
    if labels.dim() != 1 or not len(labels):
        raise ValueError(f"{name}: expected labels [N], got {list(labels.shape)}")
    if len(labels) not in images.shape[:2]:
        raise ValueError(
            f"{name}: expected images [N, ...] or sequences [T, N, ...] of the {len(labels)} labels, "
            f"got {list(images.shape)}"
        )
    # from pinned memory a copy to a GPU need not be waited for
    return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
