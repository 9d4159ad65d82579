"""sca.training: configuration, learning rates, losses, and what is measured."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
import torch

import sca
from sca.training import TrainConfig
from sca.training.loop import learning_rate
from sca.training.losses import LOSSES
from sca.training.metrics import accuracy
from sca.training.speed import compare_speed


def test_train_config_from_preset_follows_the_data_set():
    assert TrainConfig.from_preset().data == "digits"
    assert TrainConfig.from_preset(data="cifar10") == TrainConfig()
    paper = TrainConfig.from_preset("paper", data="cifar10")
    assert (paper.neuron, paper.loss, paper.epochs, paper.lr, paper.schedule, paper.min_channels) == (
        "if",
        "mean",
        300,
        0.01,
        "constant",
        0,
    )
    assert TrainConfig.from_preset("paper", lr=0.5).lr == 0.5


@pytest.mark.parametrize(
    "changes",
    [
        {"density": 0.0},
        {"density": 1.5},
        {"epochs": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"time_steps": 0},
        {"regrow_fraction": 1.0},
        {"prune_start": 0.7, "prune_stop": 0.6},
        {"precision": "float8"},
        {"loss": "hinge"},
        {"label_smoothing": 1.0},
        {"flip": "never"},
        {"cutout": -1},
        {"epochs": "ten"},
        {"checkpointing": 1},
        {"min_channels": 2.5},
        {"neuron_arguments": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_train_config_names_the_field_that_is_off(changes):
    with pytest.raises(ValueError, match=f"^{next(iter(changes))}: expected"):
        TrainConfig.from_preset(**changes)


def test_train_config_refuses_unknown_presets_and_fields():
    with pytest.raises(ValueError, match=r"preset: expected one of fast, paper, two_hours, .*, got 'slow'"):
        TrainConfig.from_preset("slow")
    with pytest.raises(ValueError, match="epoch: expected a field of the configuration; did you mean epochs"):
        TrainConfig.from_preset(epoch=3)


def test_train_config_precision_auto_is_float32_on_the_cpu():
    assert TrainConfig().precision == "float32"
    assert TrainConfig(precision="bfloat16").precision == "bfloat16"


def test_learning_rate_warms_up_then_falls():
    cosine = TrainConfig(epochs=10, warmup=2, lr=1.0)
    rates = [learning_rate(cosine, epoch / 4) for epoch in range(41)]
    assert rates.index(max(rates)) == 8
    assert all(a < b for a, b in pairwise(rates[:9]))
    assert all(a > b for a, b in pairwise(rates[8:]))
    assert rates[-1] < 1e-9
    step = TrainConfig(epochs=300, warmup=0, lr=0.01, lr_schedule="step", lr_step=100)
    assert [round(learning_rate(step, epoch), 9) for epoch in (0, 99.9, 100, 250)] == [0.01, 0.01, 0.001, 0.0001]


@pytest.mark.parametrize("warmup", [5e-324, 1e-4, 1.0, 1e308])
@pytest.mark.parametrize("lr_step", [5e-324, 1.0, 1e308])
def test_learning_rate_never_exceeds_its_peak(warmup, lr_step):
    for schedule in ("cosine", "step"):
        config = TrainConfig(epochs=10, warmup=warmup, lr=0.5, lr_schedule=schedule, lr_step=lr_step)
        assert all(0 <= learning_rate(config, epoch) <= 0.5 for epoch in (0, 1e-9, 0.5, 3, 10))


def test_losses_agree_when_every_step_says_the_same():
    logits, labels = torch.randn(1, 5, 3).expand(4, -1, -1), torch.tensor([0, 1, 2, 1, 0])
    values = [loss(logits, labels, 0.1) for loss in LOSSES.values()]
    assert torch.allclose(values[0], values[1])


def test_loss_each_step_is_the_mean_of_the_steps_losses():
    logits, labels = torch.randn(3, 5, 4), torch.tensor([0, 1, 2, 3, 0])
    expected = torch.stack([torch.nn.functional.cross_entropy(step, labels) for step in logits]).mean()
    assert torch.allclose(LOSSES["each_step"](logits, labels, 0.0), expected)


def test_accuracy_counts_every_example_once_and_restores_the_mode():
    model = torch.nn.Identity().train()
    logits = torch.eye(3).expand(2, 3, 3)
    batches = [(logits, torch.tensor([0, 1, 0])), (logits[:, :1], torch.tensor([0]))]
    assert accuracy(model, batches) == 0.75
    assert model.training


def test_compare_speed_tells_slow_from_fast():
    speeds = compare_speed(
        {"slow": lambda: time.sleep(0.02), "fast": lambda: time.sleep(0.001)}, samples=10, device="cpu", max_rounds=5
    )
    assert speeds["fast"].median > 2 * speeds["slow"].median
    assert speeds["slow"].p20 <= speeds["slow"].median <= speeds["slow"].p80
    assert speeds["slow"].rounds == 5


def test_names_that_moved_out_of_training_metrics_say_where_they_are() -> None:
    from sca.training import firing, metrics, speed

    for name, home in ("FiringRate", firing), ("Speed", speed), ("compare_speed", speed), ("connectivity", sca.cost):
        with pytest.warns(DeprecationWarning, match=rf"metrics\.{name} is deprecated: use {home.__name__}\.{name}"):
            assert getattr(metrics, name) is getattr(home, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = metrics.nothing
