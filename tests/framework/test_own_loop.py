"""Around sca.SCAScheduler in a user's own loop, and in ours: inference mode, averages swapped in, update_bn, several
optimizers."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import sca
from sca.cli import display
from sca.structure.groups import find_groups
from sca.training import Callback, CSVLog, Trainer
from tests.framework.own_training import own_trainer
from tests.framework.watched import assert_equal_state, tiny, trainer_of

SETTINGS = {"density": 0.5, "start": 2, "stop": 12, "interval": 2, "min_channels": 2}


def new_model() -> nn.Module:
    torch.manual_seed(0)
    return sca.models.build("vgg5", num_classes=4, in_channels=1, time_steps=2, image_size=8, width=0.125, neuron="lif")


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.rand(8, 1, 8, 8, generator=generator), torch.randint(4, (8,), generator=generator)) for _ in range(14)
    ]


Between = Callable[[nn.Module, AveragedModel, tuple[torch.Tensor, torch.Tensor]], None]


def train(between: Between) -> tuple[nn.Module, sca.SCAScheduler, AveragedModel]:
    """A user's loop, which does something between two steps."""
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    scheduler = sca.SCAScheduler(model, optimizer, **SETTINGS)
    scheduler.follow(average)
    for images, labels in batches():
        model.train()

        def loss_fn(images=images, labels=labels) -> torch.Tensor:
            return cross_entropy(model(images).mean(0), labels)

        optimizer.zero_grad()
        loss_fn().backward()
        optimizer.step()
        if scheduler.wants_probe:
            scheduler.probe(loss_fn)
        scheduler.step()
        average.update_parameters(model)
        between(model, average, (images, labels))
    return model, scheduler, average


def validate(model: nn.Module, average: AveragedModel, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    model.eval()
    with torch.inference_mode():
        assert model(batch[0]).isfinite().all()


def swap_values(model: nn.Module, average: AveragedModel, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Validate with the average's values in the model's own memory."""
    kept = [p.data.clone() for p in model.parameters()]
    for p, q in zip(model.parameters(), average.parameters(), strict=True):
        p.data.copy_(q.data)
    validate(model, average, batch)
    assert_same_outputs(model, average, batch[0])
    for p, value in zip(model.parameters(), kept, strict=True):
        p.data.copy_(value)


def swap_memory(model: nn.Module, average: AveragedModel, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Validate with the average's memory in the model's parameters."""
    kept = [p.data for p in model.parameters()]
    for p, q in zip(model.parameters(), average.parameters(), strict=True):
        p.data = q.data
    validate(model, average, batch)
    assert_same_outputs(model, average, batch[0])
    for p, value in zip(model.parameters(), kept, strict=True):
        p.data = value


def estimate_statistics(model: nn.Module, average: AveragedModel, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    update_bn(batches()[:2], average)


def assert_same_outputs(model: nn.Module, average: AveragedModel, images: torch.Tensor) -> None:
    """In the average's eval mode, with the model's statistics: the average has those of the model, copied."""
    average.eval()
    with torch.no_grad():
        assert torch.equal(model(images), average(images))


@pytest.mark.parametrize("between", [validate, swap_values, swap_memory, estimate_statistics])
def test_own_loop_goes_on_as_if_nothing_had_been_done_between_its_steps(between, caplog):
    caplog.set_level(logging.WARNING, "sca")
    model, scheduler, _ = train(between)
    undisturbed, expected, _ = train(lambda *_: None)
    assert scheduler.history == expected.history
    assert scheduler.density == pytest.approx(0.5, abs=0.03)
    assert_equal_state(dict(model.state_dict()), dict(undisturbed.state_dict()))
    assert "dormant channels changed" not in caplog.text


def test_update_bn_gives_an_average_the_statistics_of_its_own_weights():
    model, _, average = train(lambda *_: None)
    norm = average.module.features[0].neuron
    before, momentum, active = norm.running_mean.clone(), norm.momentum, norm.group.active
    update_bn(batches(), average)
    with torch.no_grad():
        conv = average.module.features[0].conv
        currents = torch.cat([conv(images) for images, _ in batches()])
    assert torch.allclose(norm.running_mean[active], currents.mean((0, 2, 3)), atol=1e-5)
    assert not torch.equal(norm.running_mean, before)
    assert norm.momentum == momentum
    groups = {name: members.group for name, members in find_groups(model).items()}
    for name, members in find_groups(average.module).items():
        assert torch.equal(members.group.active, groups[name].active), name


def test_update_bn_leaves_the_statistics_of_dormant_channels():
    _, scheduler, average = train(lambda *_: None)
    assert scheduler.density < 1
    norms = [norm for members in find_groups(average.module).values() for norm in members.norms.values()]
    dormant = [norm.group.dormant for norm in norms]
    before = [torch.stack([norm.running_mean, norm.running_var]) for norm in norms]
    update_bn(batches(), average)
    for norm, channels, kept in zip(norms, dormant, before, strict=True):
        now = torch.stack([norm.running_mean, norm.running_var])
        assert torch.equal(now[:, channels], kept[:, channels])
        assert not torch.equal(now, kept)


@pytest.mark.parametrize("density", [0.5, 1.0])
def test_our_loop_goes_on_as_if_callbacks_had_validated_swapped_and_averaged(density):
    class Disturbing(Callback):
        def on_start(self, trainer: Trainer) -> None:
            self.batch = next(iter(trainer.test))
            self.average = AveragedModel(trainer.model)
            if trainer.scheduler is not None:
                trainer.scheduler.follow(self.average)

        def on_batch(self, trainer: Trainer) -> None:
            model = trainer.model
            self.average.update_parameters(model)
            with torch.inference_mode():
                model.eval()(self.batch[0])
            swap_values(model, self.average, self.batch)
            update_bn([self.batch], self.average)
            model.train()

        def on_epoch(self, row: dict[str, Any]) -> None:
            with torch.inference_mode():
                self.average(self.batch[0])

    alone, disturbed = trainer_of(tiny(density=density)), trainer_of(tiny(density=density))
    alone.fit()
    disturbed.callbacks.append(Disturbing())
    disturbed.fit()
    assert_equal_state(disturbed.state(), alone.state())


def test_density_is_a_share_of_the_prunable_channels_wherever_it_is_told(tmp_path):
    dense = own_trainer(pruned=False)
    dense.groups["second"].prunable = False
    scheduler = sca.SCAScheduler(dense.model, dense.optimizer, **SETTINGS)
    trainer = Trainer(
        dense.model,
        dense.optimizer,
        dense.train,
        loss=dense.criterion,
        epochs=3,
        scheduler=scheduler,
        callbacks=[CSVLog(tmp_path)],
    )
    trainer.fit()
    row = trainer.history[-1]
    assert row["active"] == {"conv": 6, "second": 8}
    assert row["density"] == trainer.density == scheduler.density == trainer.updates[-1]["density"] == 0.5
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert [float(line["density"]) for line in csv.DictReader(file)][-1] == 0.5
    assert "density 50%" in display._figures(row)


def test_density_is_1_where_nothing_is_prunable():
    trainer = own_trainer(pruned=False)
    for group in trainer.groups.values():
        group.set_active([0])
        group.prunable = False
    assert trainer.density == 1.0
