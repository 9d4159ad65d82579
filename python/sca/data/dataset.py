"""The resident data set: images, or frames of recordings, and labels; batches drawn by seed and position."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .. import checkpoint
from ..registry import lookup
from ..settings import check_number
from .augmentation import coins, cut_out, mix_recordings, rotate_and_shear, shift_and_mirror
from .loaders import ShuffledLoader, SplitLoader
from .policies import augmented

Batch = tuple[Tensor, Tensor]

# Images have hardly more channels.
_MOST_CHANNELS = 4
# Bytes of pixels, or counts of events in one: what indexing works on.
_FRAME_TYPES = (torch.uint8, torch.int16, torch.int32)
# Frames that take more of a GPU's free memory than this stay on the host, batch by batch.
_SHARE_OF_MEMORY = 0.5
# Arguments of an augmentation that have a range.
_CHECKED = ("flip", "cutout", "policy", "rotate", "shear", "mix")


@dataclass(frozen=True)
class Split:
    """Images, or frames of recordings, and their labels.

    Attributes:
        images: uint8 ``[N, H, W, C]``: rows of pixels, so that a batch is a channels_last view. Or sequences of frames,
            uint8, int16 or int32 ``[N, T, H, W, C]``.
        labels: int64 ``[N]``, in ``[0, num_classes)``.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        for name, value in ("images", self.images), ("labels", self.labels):
            if not isinstance(value, Tensor):
                raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        is_frames = self.images.dim() == 5 and self.images.dtype in _FRAME_TYPES
        if not is_frames and (self.images.dtype != torch.uint8 or self.images.dim() != 4):
            advice = ""
            if self.images.is_floating_point():
                advice = "; store pixels as bytes, (images * 255).round().to(torch.uint8) if they are in [0, 1]"
            elif self.images.dim() == 3:
                advice = "; grey images have a last dimension of 1: images[..., None]"
            raise ValueError(
                f"images: expected uint8 [N, H, W, C], or frames uint8, int16 or int32 [N, T, H, W, C], "
                f"got {_shown(self.images)}{advice}"
            )
        if not len(self.images):
            raise ValueError(f"images: expected at least one, got {_shown(self.images)}")
        if 0 in self.images.shape:
            raise ValueError(f"images: expected pixels, got {_shown(self.images)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            advice = ""
            if self.labels.dim() == 2 and len(self.labels) == len(self.images):
                advice = "; of one-hot rows take labels.argmax(1)"
            elif self.labels.shape == self.images.shape[:1]:
                advice = "; numbers of classes are whole: labels.long()"
            raise ValueError(f"labels: expected int64 [{len(self.images)}], got {_shown(self.labels)}{advice}")
        if self.images.device != self.labels.device:
            raise ValueError(f"labels: expected them on {self.images.device}, as the images, got {self.labels.device}")

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, limit: int | None) -> Split:
        """The first ``limit`` examples (all of them when None)."""
        if limit is not None and limit < 1:
            raise ValueError(f"limit: expected at least 1 example, got {limit}")
        return Split(self.images[:limit], self.labels[:limit])


@dataclass(frozen=True)
class Dataset:
    """A labelled data set of images, or of recordings as frames, that stays resident on one device.

    Attributes:
        name: its name in the registry.
        train, test: the two splits.
        num_classes: number of labels.
        mean, std: per channel, in units of ``full_scale``.
        full_scale: the pixel value that stands for 1.0.
        shift: augmentation: each training image is moved by up to this many pixels (zero padding, then a random crop;
            frames of recordings are rolled).
        mirror: augmentation: mirror half of the training images.
        validation: images held out of the training split, see :meth:`held_out`; None where there are none.
        size: height and width that images are resampled to (bilinear) when they are drawn; None: none.
        classes: their names; empty where they have none.
        told: what the images are, in words; empty where the name says it.
        device: where batches are moved to, as they are drawn; None: they stay where the splits are.

    Raises:
        ValueError: a label is no number of a class, the statistics are not those of the images' channels, the splits
            differ in shape, or images are [N, C, H, W]; the message names the attribute.
    """

    name: str
    train: Split
    test: Split
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    full_scale: float = 255.0
    shift: int = 0
    mirror: bool = False
    validation: Split | None = None
    size: tuple[int, int] | None = None
    classes: tuple[str, ...] = ()
    told: str = ""
    device: torch.device | None = None

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {self.num_classes}")
        first, *_, channels = self.train.images.shape[-3:]
        for name, split in self.splits.items():
            if split.images.shape[1:] != self.train.images.shape[1:]:
                raise ValueError(
                    f"{name}: expected images of {list(self.train.images.shape[1:])}, as for training, "
                    f"got {list(split.images.shape[1:])}"
                )
        if len(self.mean) != channels and (len(self.mean) == first or first <= _MOST_CHANNELS < channels):
            raise ValueError(
                f"images: expected [N, H, W, C], got {list(self.train.images.shape)}, which looks like [N, C, H, W]: "
                "permute(0, 2, 3, 1) makes the one of the other"
            )
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != channels:
                raise ValueError(
                    f"{name}: expected a value for each of the images' channels, {channels}, got {len(values)}"
                )
            if not all(math.isfinite(value) for value in values) or (name == "std" and min(values) <= 0):
                expected = "finite numbers" if name == "mean" else "finite numbers > 0"
                raise ValueError(f"{name}: expected {expected}, got {values}")
        if not 0 < self.full_scale < math.inf:
            raise ValueError(f"full_scale: expected a finite number > 0, got {self.full_scale}")
        if self.shift < 0:
            raise ValueError(f"shift: expected at least 0 pixels, got {self.shift}")
        for name, split in self.splits.items():
            low, high = (int(value) for value in split.labels.aminmax())
            if low < 0 or high >= self.num_classes:
                advice = "; number the classes from 0: labels - 1" if (low, high) == (1, self.num_classes) else ""
                raise ValueError(
                    f"labels: expected 0 to {self.num_classes - 1}, the numbers of {self.num_classes} classes, "
                    f"got {low} to {high} in {name}{advice}"
                )

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, by name."""
        named = {"train": self.train, "test": self.test, "validation": self.validation}
        return {name: split for name, split in named.items() if split is not None}

    @functools.cached_property
    def digest(self) -> str:
        """Of all images and labels, and the name."""
        tensors = {}
        for name, split in self.splits.items():
            tensors |= {f"{name}.images": split.images.cpu(), f"{name}.labels": split.labels.cpu()}
        return checkpoint.digest(tensors, self.name)

    @property
    def in_channels(self) -> int:
        return self.train.images.shape[-1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.size or tuple(self.train.images.shape[-3:-1])

    @property
    def time_steps(self) -> int | None:
        """T of the sequences; None where there are images."""
        return self.train.images.shape[1] if self.train.images.dim() == 5 else None

    @property
    def noun(self) -> str:
        """What its samples are called."""
        return "images" if self.time_steps is None else "recordings"

    def limited(self, train: int | None = None, test: int | None = None) -> Dataset:
        """The same data set with the first ``train`` and ``test`` examples only (None = all)."""
        return replace(self, train=self.train.first(train), test=self.test.first(test))

    def held_out(self, count: int, seed: int) -> Dataset:
        """The same data set with ``count`` training images, chosen by ``seed``, in ``validation`` in place of
        ``train``; both keep their order.

        Raises:
            ValueError: no training image would be left.
        """
        if count == 0:
            return self
        if not 0 < count < len(self.train):
            raise ValueError(f"validation: expected fewer than the {len(self.train)} training images, got {count}")
        # epochs, which draw their order from the same seed, are numbered from 0
        held = torch.randperm(len(self.train), generator=generator_at(seed, -1), device="cpu") < count
        held = held.to(self.train.labels.device)
        train, validation = (Split(self.train.images[mask], self.train.labels[mask]) for mask in (~held, held))
        return replace(self, train=train, validation=validation)

    def to(self, device: torch.device | str) -> Dataset:
        """The same data set with its tensors, or where they would fill it, its batches on ``device``."""
        if torch.device(device).type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if sum(split.images.nbytes for split in self.splits.values()) > _SHARE_OF_MEMORY * free:
                return replace(self, device=torch.device(device))
        moved = {name: Split(s.images.to(device), s.labels.to(device)) for name, s in self.splits.items()}
        return replace(self, **moved, device=None)

    def train_loader(self, batch_size: int, *, seed: int = 0, **augmentation: Any) -> ShuffledLoader:
        """The training split as what a loop iterates over; the arguments are those of :meth:`train_batches`.

        Returns:
            Each iteration over it is an epoch, that of ``set_epoch(epoch)``; its length is the number of batches.

        Raises:
            TypeError: an argument is none of these.
            ValueError: one is out of range, or nothing for such data.
        """
        bound = inspect.signature(self.train_batches).bind(batch_size, seed=seed, epoch=0, **augmentation)
        bound.apply_defaults()
        self._check_augmentation(**{name: bound.arguments[name] for name in _CHECKED})
        return ShuffledLoader(self, batch_size, seed, augmentation)

    def loader(self, split: str, batch_size: int) -> SplitLoader:
        """A split (``train``, ``test`` or ``validation``), in its own order, as what a loop iterates over.

        Raises:
            ValueError: there is no such split.
        """
        self._named(split)
        return SplitLoader(self, split, batch_size)

    def train_batches(
        self,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        start: int = 0,
        augment: bool = True,
        flip: str = "random",
        cutout: int = 0,
        policy: str | None = None,
        rotate: float = 0.0,
        shear: float = 0.0,
        mix: float = 0.0,
    ) -> Iterator[Batch]:
        """The batches ``start, start + 1, ...`` of one shuffled epoch.

        A batch depends on ``(seed, epoch, its position)`` alone, so an interrupted epoch continues where it stopped
        with the same batches and the same augmentation.

        Args:
            augment: whether images are moved, mirrored (as far as the data set says), changed and cut.
            flip: ``random`` (each image is mirrored with probability 1/2), or ``alternating``: in every other epoch,
                half of the images in the odd ones (Jordan, "94% on CIFAR-10 in 3.29 seconds on a single GPU", 2024).
            cutout: side in pixels of the square that :func:`cut_out` sets to the mean; 0 for none.
            policy: one of :data:`sca.data.policies.POLICIES`, applied between moving and cutting; None for none.
            rotate, shear: see :func:`rotate_and_shear`; 0 for none.
            mix: probability of :func:`mix_recordings`, of which labels become probabilities; 0 for none.

        Returns:
            Iterator of ``(images, labels)``: float32 ``[N, C, H, W]``, or ``[T, N, C, H, W]`` of sequences,
            channels_last, normalised; int64 ``[N]``, with ``mix`` float32 ``[N, num_classes]``. The last batch of an
            epoch may be smaller.

        Raises:
            ValueError: an argument is out of range, or nothing for such data; told by the first batch.
        """
        self._check_augmentation(flip, cutout, policy, rotate, shear, mix)
        order = torch.randperm(len(self.train), generator=generator_at(seed, epoch), device="cpu")
        in_odd_epochs = coins(len(self.train), generator_at(seed))
        for position, index in enumerate(order.split(batch_size)[start:], start):
            images, labels = self._drawn(self.train, index)
            if not augment:
                yield self._normalised(images), labels
                continue
            generator = generator_at(seed, epoch, position + 1)
            if self.shift or self.mirror:
                mirrored = in_odd_epochs[index] ^ (epoch % 2 == 0) if flip == "alternating" else None
                mirrored = coins(len(index), generator) if mirrored is None else mirrored
                rolls = self.time_steps is not None
                images = shift_and_mirror(images, self.shift, mirrored & self.mirror, generator, rolls)
            if rotate or shear:
                images = rotate_and_shear(images, rotate, shear, generator)
            if mix:
                images, labels = mix_recordings(images, labels, self.num_classes, mix, generator)
            images = self._scaled(images)
            if policy is not None:
                images = augmented(images.permute(0, 3, 1, 2), policy, generator).permute(0, 2, 3, 1)
            images = self._standardised(images)
            yield (cut_out(images, cutout, generator) if cutout else images), labels

    def _check_augmentation(
        self, flip: str, cutout: int, policy: str | None, rotate: float, shear: float, mix: float
    ) -> None:
        check_number("cutout", cutout, low=0)
        check_number("rotate", rotate, low=0, high=180)
        check_number("shear", shear, low=0)
        check_number("mix", mix, low=0, high=1)
        lookup(dict.fromkeys(("random", "alternating")), flip, "flip")
        if self.time_steps is None and mix:
            raise ValueError(f"mix: expected 0 for {self.name}, which is no event camera's, got {mix}")
        if self.time_steps is not None and policy is not None:
            raise ValueError(f"policy: expected none for recordings, got {policy!r}")

    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        """:meth:`batches` of the test split."""
        return self.batches("test", batch_size)

    def batches(self, split: str, batch_size: int) -> Iterator[Batch]:
        """A split in its own order, without augmentation; shapes and types as in :meth:`train_batches`."""
        held = self._named(split)
        for start in range(0, len(held), batch_size):
            images, labels = self._drawn(held, slice(start, start + batch_size))
            yield self._normalised(images), labels

    def _named(self, split: str) -> Split:
        return lookup(self.splits, split, "split")

    def _drawn(self, split: Split, index: Tensor | slice) -> Batch:
        """Images of a split as they are stored, or resampled, on the device of batches."""
        if isinstance(index, Tensor):
            index = index.to(split.images.device)
        images, labels = split.images[index], split.labels[index]
        if self.device is not None:
            images, labels = (values.pin_memory().to(self.device, non_blocking=True) for values in (images, labels))
        if self.size is not None:
            frames = images.flatten(0, -4).permute(0, 3, 1, 2).float()
            frames = interpolate(frames, self.size, mode="bilinear").permute(0, 2, 3, 1)
            images = frames.unflatten(0, images.shape[:-3])
        return images, labels

    def _normalised(self, images: Tensor) -> Tensor:
        return self._standardised(self._scaled(images))

    def _scaled(self, images: Tensor) -> Tensor:
        """To float32 in [0, 1] (counts of events as they are); of sequences, time goes first."""
        if images.dim() == 5:
            images = images.transpose(0, 1).contiguous()
        return images.float() / self.full_scale

    def _standardised(self, images: Tensor) -> Tensor:
        """``[..., H, W, C]`` in [0, 1] to ``[..., C, H, W]`` of mean 0 and variance 1."""
        mean, std = torch.tensor([self.mean, self.std], dtype=images.dtype, device=images.device)
        return ((images - mean) / std).movedim(-1, -3)


def _shown(tensor: Tensor) -> str:
    """Type and shape, for messages."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def generator_at(seed: int, *position: int) -> torch.Generator:
    """A CPU generator for one place in the run; neighbouring seeds and positions give unrelated streams."""
    mixed = seed
    for value in position:
        # splitmix64's increment and first multiplier: an odd multiplier keeps different positions apart
        mixed = ((mixed + 0x9E3779B97F4A7C15) * 0xBF58476D1CE4E5B9 + value) % 2**64
    return torch.Generator().manual_seed(mixed - 2**63)
