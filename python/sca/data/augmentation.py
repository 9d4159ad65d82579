"""Augmentation of batches that lie on a device: images ``[N, H, W, C]``, or sequences of frames ``[N, T, H, W, C]``, of
which all frames are changed alike. Everything is drawn from a CPU generator."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

__all__ = ["coins", "cut_out", "mix_recordings", "rotate_and_shear", "shift_and_mirror"]


def coins(count: int, generator: torch.Generator, probability: float = 0.5) -> Tensor:
    """bool [count] on the CPU, each true with that probability."""
    return torch.rand(count, generator=generator, dtype=torch.float32, device="cpu") < probability


def shift_and_mirror(
    images: Tensor, shift: int, mirrored: Tensor, generator: torch.Generator, rolls: bool = False
) -> Tensor:
    """Move each image by up to ``shift`` pixels and mirror some of them, all in one gather.

    Args:
        images: any dtype ``[N, H, W, C]`` or ``[N, T, H, W, C]``.
        mirrored: bool ``[N]``, on the CPU.
        generator: a CPU generator; two draws of N numbers.
        rolls: what leaves on one side comes in on the other, as for events (Deng et al., TET, ICLR 2022); else zeros
            come in.

    Returns:
        A new tensor of the same shape and dtype.
    """
    height, width = images.shape[-3:-1]
    top, left = torch.randint(2 * shift + 1, (2, len(images), 1), generator=generator, device="cpu").to(images.device)
    column = torch.arange(width, device=images.device)
    rows = top + torch.arange(height, device=images.device)
    columns = left + torch.where(mirrored[:, None].to(images.device), width - 1 - column, column)
    frames = images.flatten(0, -4)
    if rolls:
        rows, columns = (rows - shift) % height, (columns - shift) % width
    else:
        frames = pad(frames, (0, 0, shift, shift, shift, shift))
    return _gathered(frames, rows[:, :, None], columns[:, None, :]).view(images.shape)


def rotate_and_shear(images: Tensor, rotate: float, shear: float, generator: torch.Generator) -> Tensor:
    """Turn each image about its centre by up to ``rotate`` degrees and shift its rows sideways by up to ``shear`` of
    their distance from the centre (Li et al., "Neuromorphic data augmentation for training spiking neural networks",
    ECCV 2022). Each pixel takes the value of the nearest; zeros come in.

    Args:
        images: any dtype ``[N, H, W, C]`` or ``[N, T, H, W, C]``.
        generator: a CPU generator; two draws of N numbers.

    Returns:
        A new tensor of the same shape and dtype.
    """
    height, width = images.shape[-3:-1]
    draws = 2 * torch.rand(2, len(images), 1, 1, generator=generator, dtype=torch.float64, device="cpu") - 1
    angle, slope = (draws * torch.tensor([math.radians(rotate), shear], dtype=torch.float64)[:, None, None, None]).to(
        images.device, torch.float32
    )
    y, x = (torch.arange(side, device=images.device) - (side - 1) / 2 for side in (height, width))
    y, x = y[:, None], x[None, :] + slope * y[:, None]
    rows = (angle.cos() * y - angle.sin() * x + (height - 1) / 2).round().long()
    columns = (angle.sin() * y + angle.cos() * x + (width - 1) / 2).round().long()
    outside = (rows < 0) | (rows >= height) | (columns < 0) | (columns >= width)
    taken = _gathered(images.flatten(0, -4), rows.clamp(0, height - 1), columns.clamp(0, width - 1)).view(images.shape)
    return taken.masked_fill_(outside.view(-1, *[1] * (images.dim() - 4), height, width, 1), 0)


def cut_out(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Set a square of each image to 0, in place (DeVries & Taylor, "Improved regularization of convolutional neural
    networks with cutout", 2017): its centre is any pixel, so that a part of it may lie outside.

    Args:
        images: floating point ``[N, C, H, W]`` or ``[T, N, C, H, W]``, normalised: 0 is the mean, or no event.
        size: side of the square in pixels.
        generator: a CPU generator; two draws of N numbers.

    Returns:
        ``images``.
    """
    inside = []
    for side in images.shape[-2:]:
        first = (
            torch.randint(side, (images.shape[-4], 1), generator=generator, device="cpu").to(images.device) - size // 2
        )
        pixel = torch.arange(side, device=images.device)
        inside.append((pixel >= first) & (pixel < first + size))
    rows, columns = inside
    return images.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0)


def mix_recordings(
    frames: Tensor, labels: Tensor, num_classes: int, probability: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Put a box of another recording, in time and space, into some of a batch; the labels are mixed by the numbers of
    events that come from each (after Shen et al., "EventMix", 2022, whose mask is a mixture of Gaussians).

    Args:
        frames: ``[N, T, H, W, C]``.
        labels: int64 ``[N]``.
        probability: of each recording to be mixed.
        generator: a CPU generator.

    Returns:
        New frames, and probabilities of the classes, float32 ``[N, num_classes]``.
    """
    n, device = len(frames), frames.device
    partner = torch.randperm(n, generator=generator, device="cpu").to(device)
    chosen = coins(n, generator, probability).to(device)
    share, *centres = torch.rand(4, n, 1, generator=generator, dtype=torch.float32, device="cpu").to(device)
    inside = []
    for side, centre in zip(frames.shape[1:4], centres, strict=True):
        length = side * share ** (1 / 3)
        first = centre * side - length / 2
        place = torch.arange(side, device=device) + 0.5
        inside.append((place >= first) & (place < first + length))
    times, rows, columns = inside
    box = times[:, :, None, None] & rows[:, None, :, None] & columns[:, None, None, :]
    box = (box & chosen[:, None, None, None])[..., None]
    others = frames[partner]
    mixed = torch.where(box, others, frames)
    theirs = (others * box).flatten(1).sum(1, dtype=torch.float32)
    weight = (theirs / mixed.flatten(1).sum(1, dtype=torch.float32).clamp(min=1))[:, None]
    own, other = (one_hot(labels[index], num_classes).float() for index in (slice(None), partner))
    return mixed, own * (1 - weight) + other * weight


def _gathered(frames: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pixels of frames [M, H, W, C] by their rows and columns [N, H', W'], the same for M / N frames in a row."""
    repeats = len(frames) // len(rows)
    rows, columns = (index.repeat_interleave(repeats, 0) for index in (rows, columns))
    return frames[torch.arange(len(frames), device=frames.device)[:, None, None], rows, columns]
