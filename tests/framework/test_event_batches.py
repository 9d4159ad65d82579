"""Batches of recordings, and what changes them: all frames of a recording alike."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sca import data
from sca.data.augmentation import cut_out, mix_recordings, rotate_and_shear, shift_and_mirror


@pytest.fixture(params=[torch.uint8, torch.int16], ids=str)
def frames(request) -> data.Dataset:
    """Ten recordings of 4 frames; of each, all frames are the same."""
    generator = torch.Generator().manual_seed(0)
    one = torch.randint(3, (10, 1, 12, 9, 2), generator=generator).to(request.param)
    split = data.Split(one.repeat(1, 4, 1, 1, 1), torch.arange(10))
    return data.Dataset("frames", split, split, 10, (0.0, 0.0), (1.0, 1.0), full_scale=1.0, shift=3, mirror=True)


def test_batches_are_sequences_in_channels_last(frames):
    images, labels = next(frames.batches("test", 4))
    assert (images.shape, images.dtype, labels.tolist()) == ((4, 4, 2, 12, 9), torch.float32, [0, 1, 2, 3])
    assert images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, frames.test.images[:4].float().permute(1, 0, 4, 2, 3))


EVERYTHING = {"flip": "random", "cutout": 4, "rotate": 30.0, "shear": 0.2, "mix": 0.5}


def test_train_batches_of_sequences_depend_on_seed_epoch_and_position_alone(frames):
    def draw(**arguments: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(frames.train_batches(4, **arguments, **EVERYTHING))

    whole, again, later = draw(seed=3, epoch=1), draw(seed=3, epoch=1), draw(seed=3, epoch=1, start=1)
    for (images, labels), (same_images, same_labels) in zip(whole, again, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
    assert torch.equal(whole[1][0], later[0][0])
    assert not torch.equal(whole[0][0], draw(seed=4, epoch=1)[0][0])


@pytest.mark.parametrize("name", ["roll and mirror", "cutout", "rotate", "shear"])
def test_all_frames_of_a_recording_are_changed_alike(frames, name):
    plain = {"flip": "random", "cutout": 0}
    changes = {"roll and mirror": {}, "cutout": {"cutout": 5}, "rotate": {"rotate": 45.0}, "shear": {"shear": 0.5}}[
        name
    ]
    changed = torch.cat([images for images, _ in frames.train_batches(4, seed=0, epoch=0, **(plain | changes))], 1)
    order = [label for _, labels in frames.train_batches(4, seed=0, epoch=0, **plain) for label in labels.tolist()]
    original = frames.train.images[order].float().permute(1, 0, 4, 2, 3)
    assert all(torch.equal(changed[0], step) for step in changed)
    assert not torch.equal(changed, original)
    if name == "roll and mirror":
        assert torch.equal(changed.sum((0, 2, 3, 4)), original.sum((0, 2, 3, 4)))


@pytest.mark.parametrize("flip", ["random", "alternating"])
def test_batches_of_resampled_frames_go_on_in_the_middle_of_an_epoch(frames, flip):
    resampled = dataclasses.replace(frames, size=(16, 20))

    def draw(**arguments: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(resampled.train_batches(3, seed=7, epoch=2, **arguments, **(EVERYTHING | {"flip": flip})))

    whole, later = draw(), draw(start=2)
    assert [tuple(images.shape) for images, _ in whole] == [(4, 3, 2, 16, 20)] * 3 + [(4, 1, 2, 16, 20)]
    assert len(later) == 2
    for (images, labels), (same_images, same_labels) in zip(whole[2:], later, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
    for images, labels in whole:
        assert (images.dtype, labels.dtype) == (torch.float32, torch.float32)
        assert images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(labels.sum(1), torch.ones(len(labels)))


def test_batches_leave_the_frames_alone(frames):
    held = frames.train.images.clone()
    for _ in frames.train_batches(4, seed=0, epoch=0, **EVERYTHING):
        pass
    assert torch.equal(frames.train.images, held)


def test_batches_hold_counts_that_fill_their_type():
    """Nothing is added in 16 bits."""
    images = torch.full((4, 3, 6, 5, 2), 32_767, dtype=torch.int16)
    split = data.Split(images, torch.arange(4))
    counts = data.Dataset("counts", split, split, 4, (0.0, 0.0), (1.0, 1.0), full_scale=1.0, shift=2, mirror=True)
    for batch, labels in counts.train_batches(4, seed=0, epoch=0, mix=1.0):
        assert (batch == 32_767).all()
        assert ((labels >= 0) & (labels <= 1)).all()
        assert torch.allclose(labels.sum(1), torch.ones(4))


def test_a_mirrored_recording_is_the_mirror_image_in_all_frames(frames):
    still = dataclasses.replace(frames, shift=0)
    (images, labels), *_ = still.train_batches(10, seed=0, epoch=0)
    original = frames.train.images[labels].float().permute(1, 0, 4, 2, 3)
    mirrored = [torch.equal(images[:, n], original[:, n].flip(-1)) for n in range(10)]
    same = [torch.equal(images[:, n], original[:, n]) for n in range(10)]
    assert all(one != other for one, other in zip(mirrored, same, strict=True))
    assert 0 < sum(mirrored) < 10


def test_rolling_moves_events_to_the_other_side():
    frames = torch.zeros(64, 2, 6, 5, 2, dtype=torch.uint8)
    frames[:, :, 0, 0, 1] = 1
    moved = shift_and_mirror(frames, 2, torch.zeros(64, dtype=torch.bool), torch.Generator().manual_seed(0), rolls=True)
    assert torch.equal(moved.sum((1, 2, 3, 4)), torch.full((64,), 2))
    rows, columns = (set(moved[:, 0, :, :, 1].nonzero()[:, axis].tolist()) for axis in (1, 2))
    assert rows == {0, 1, 2, 4, 5}
    assert columns == {0, 1, 2, 3, 4}


def test_rotate_and_shear_move_pixels_about_the_centre():
    image = torch.arange(1, 26).view(1, 5, 5, 1)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(rotate_and_shear(image, 0.0, 0.0, generator), image)
    turned = rotate_and_shear(image.repeat(200, 1, 1, 1), 180.0, 0.0, generator)
    assert (turned[:, 2, 2, 0] == 13).all()
    quarter = {tuple(torch.rot90(image[0, :, :, 0], k).flatten().tolist()) for k in range(4)}
    assert len(quarter & {tuple(one.flatten().tolist()) for one in turned}) >= 3
    sheared = rotate_and_shear(image.repeat(50, 1, 1, 1), 0.0, 1.0, generator)
    assert (sheared[:, 2, :, 0] == image[0, 2, :, 0]).all()
    assert {*sheared.unique().tolist()} == {0, *range(1, 26)}


def test_cut_out_takes_the_same_square_of_all_frames():
    frames = torch.ones(3, 8, 2, 9, 7)
    cut = cut_out(frames.clone(), 3, torch.Generator().manual_seed(0))
    assert all(torch.equal(cut[0], step) for step in cut)
    zeros = (cut[0, :, 0] == 0).sum((1, 2))
    assert (zeros > 0).all()
    assert (zeros <= 9).all()


def test_mixed_labels_are_shares_of_events(frames):
    images, labels = frames.train.images, frames.train.labels
    # of each recording, events of its own number, so that those of a mixture can be told apart
    own = (labels + 1).view(-1, 1, 1, 1, 1).to(images.dtype) * (images > 0)
    mixed, probabilities = mix_recordings(own, labels, 10, 1.0, torch.Generator().manual_seed(1))
    assert torch.allclose(probabilities.sum(1), torch.ones(10))
    assert mixed.dtype == own.dtype
    for recording, row in zip(mixed, probabilities, strict=True):
        total = recording.sum().item()
        shares = {
            int(value) - 1: recording[recording == value].sum().item() / total for value in recording.unique()[1:]
        }
        expected = torch.zeros(10)
        for label, share in shares.items():
            expected[label] = share
        assert torch.allclose(row, expected, atol=1e-6)
    assert (probabilities.max(1).values < 1).any()


def test_mixing_nothing_changes_nothing(frames):
    images, labels = frames.train.images, frames.train.labels
    unmixed, probabilities = mix_recordings(images, labels, 10, 0.0, torch.Generator().manual_seed(1))
    assert torch.equal(unmixed, images)
    assert torch.equal(probabilities, torch.eye(10))
    alone, probabilities = mix_recordings(images[:1], labels[:1], 10, 1.0, torch.Generator().manual_seed(1))
    assert torch.equal(alone, images[:1])
    assert torch.equal(probabilities, torch.eye(10)[:1])
    empty, probabilities = mix_recordings(torch.zeros_like(images), labels, 10, 1.0, torch.Generator().manual_seed(1))
    assert torch.equal(probabilities, torch.eye(10))
    assert not empty.any()
