"""What the caller's modes must not change: inference mode, no_grad, another default device (meta stands for a GPU)."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn

import sca
from sca import data
from sca.structure.groups import find_groups
from tests.framework.pruning_nets import batch
from tests.framework.scheduled import make
from tests.framework.watched import assert_equal_state

Mode = Callable[[], AbstractContextManager]

OTHER_DEVICE: Mode = lambda: torch.device("meta")  # noqa: E731
in_any_mode = pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, OTHER_DEVICE])


IMAGES = torch.rand(2, 2, 32, 32, generator=torch.Generator().manual_seed(0))


def a_pruned_network() -> nn.Module:
    torch.manual_seed(0)
    model = sca.models.build("vgg5", in_channels=2, num_classes=4, image_size=32, width=0.125, time_steps=2)
    model(IMAGES)
    for members in find_groups(model).values():
        members.group.set_active(range(0, members.group.num_channels, 2))
    return model.eval()


def assert_trains_as(model: nn.Module, expected: nn.Module) -> None:
    gradients = []
    for net in model, expected:
        net.train()(IMAGES).square().sum().backward()
        gradients.append({name: p.grad for name, p in net.named_parameters()})
    assert_equal_state(*gradients)
    assert_equal_state(model.state_dict(), expected.state_dict())


@in_any_mode
@pytest.mark.parametrize("arguments", [{}, {"plain": True, "fold_batch_norm": True}], ids=["as it is", "plain"])
def test_a_compact_copy_made_in_any_mode_trains(mode: Mode, arguments: dict[str, bool]) -> None:
    model = a_pruned_network()
    with mode():
        small = sca.compact(model, **arguments)
    assert_trains_as(small, sca.compact(model, **arguments))


@in_any_mode
def test_a_network_loaded_in_any_mode_trains(mode: Mode, tmp_path: Path) -> None:
    model, file = a_pruned_network(), tmp_path / "model.safetensors"
    with mode():
        sca.save(model, file)
        loaded = sca.load(file)
    assert_trains_as(loaded, model)


@in_any_mode
def test_costs_are_the_same_in_any_mode(mode: Mode) -> None:
    model, batches = a_pruned_network(), [IMAGES]
    with mode():
        found = sca.report_cost(model, batches)
    assert found == sca.report_cost(model, batches)


def test_training_steps_are_the_same_with_another_default_device() -> None:
    runs = []
    images, labels = batch()
    for mode in nullcontext, OTHER_DEVICE:
        torch.manual_seed(0)
        model, optimizer, scheduler = make(criterion="redundancy", target="synops")

        def loss_fn(model: nn.Module = model) -> torch.Tensor:
            return nn.functional.cross_entropy(model(images), labels)

        with mode():
            for _ in range(9):
                optimizer.zero_grad()
                loss_fn().backward()
                optimizer.step()
                if scheduler.wants_probe:
                    scheduler.probe(loss_fn)
                scheduler.step()
        assert scheduler.density < 1
        runs.append({"model": model.state_dict(), "scheduler": scheduler.state_dict()})
    assert_equal_state(*runs)


@contextlib.contextmanager
def float64_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("flip", ["random", "alternating"])
@pytest.mark.parametrize("mode", [OTHER_DEVICE, float64_by_default])
def test_batches_are_the_same_with_other_defaults(mode: Mode, flip: str) -> None:
    digits = dataclasses.replace(data.load("digits"), shift=1, mirror=True).held_out(100, seed=1)
    drawn = []
    for defaults in nullcontext, mode:
        with defaults():
            drawn.append(list(digits.train_batches(256, seed=0, epoch=1, flip=flip, cutout=2)))
            again = dataclasses.replace(digits, validation=None).held_out(100, seed=2)
        assert again.train.images.device.type == "cpu"
    for (images, labels), (same_images, same_labels) in zip(*drawn, strict=True):
        assert images.dtype == same_images.dtype == torch.float32
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
