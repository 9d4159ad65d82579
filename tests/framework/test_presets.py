"""What a recipe asks of the optimizer, the schedule and the first weights is what the trainer has."""

from __future__ import annotations

import pytest
import torch

from sca import models, training
from sca.training import PRESETS, TrainConfig, Trainer

TINY = {"data": "digits", "width": 0.0625, "time_steps": 1, "limit_train": 60, "limit_test": 20, "batch_size": 20}


def trainer_of(preset: str, **changes) -> Trainer:
    config = TrainConfig.from_preset(
        preset, **{**TINY, "model": "vgg5", "min_channels": 1, "reference": None, **changes}
    )
    return Trainer(config, training.load_data(config))


def updates(trainer: Trainer) -> list[float]:
    """Epochs that had ended when the network was pruned."""
    plan = trainer.scheduler.plan
    steps = range(1, trainer.config.epochs * trainer.steps_per_epoch + 1)
    return [step / trainer.steps_per_epoch for step in steps if plan.is_update(step)]


def weights(trainer: Trainer, *kernels: int) -> set[int]:
    """Identities of the weights of convolutions with such kernels."""
    convolutions = [m for m in trainer.model.modules() if isinstance(m, torch.nn.Conv2d)]
    return {id(conv.weight) for conv in convolutions if conv.kernel_size[0] in kernels}


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 30])
def test_paper_prunes_to_its_density_after_every_epoch_from_the_first_to_the_last(epochs):
    trainer = trainer_of("paper", epochs=epochs)
    assert updates(trainer) == [*range(1, epochs + 1)]
    plan = trainer.scheduler.plan
    assert {plan.density_at(epoch * trainer.steps_per_epoch) for epoch in range(1, epochs + 1)} == {plan.density}


def test_paper_keeps_no_floor_and_regrows_the_same_share_at_every_update():
    plan = trainer_of("paper", min_channels=PRESETS["paper"]["min_channels"]).scheduler.plan
    assert plan.floor(64) == 1
    assert [plan.regrow_count(step, 30, 100) for step in (plan.start, plan.last)] == [10, 10]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epochs": 24}, [*range(4, 15)]),  # digits: from 0.15 to 0.6 of the run
        ({"epochs": 40, "prune_start": 0.01, "prune_stop": 1.0, "prune_interval": 4}, [*range(1, 41, 4)]),
        ({"epochs": 10, "prune_start": 0.0, "prune_stop": 1.0, "schedule": "constant", "prune_interval": 99}, [1]),
    ],
    ids=["digits", "every-fourth", "once"],
)
def test_updates_a_whole_number_of_epochs_apart_fall_on_ends_of_epochs(changes, expected):
    assert updates(trainer_of("digits", **changes)) == expected


def test_updates_of_a_run_that_is_too_short_for_eight_are_eight_and_within_epochs():
    found = updates(trainer_of("digits", epochs=6, prune_start=0.0, prune_stop=0.9, limit_train=200))
    assert len(found) >= 8
    assert found[-1] <= 0.9 * 6


@pytest.mark.parametrize(
    ("model", "kernels"),
    [("vgg5", {3}), ("resnet20", {3, 1}), ("sew_resnet18", {7, 3, 1})],
    ids=lambda value: str(value),
)
def test_decay_is_of_all_convolutions_and_l1_of_those_of_3x3_alone(model, kernels):
    stem = {"stem": "imagenet"} if 7 in kernels else {}
    trainer = trainer_of("paper", model=model, weight_decay=5e-4, density=1.0, **stem)
    decayed, others = trainer.optimizer.param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (5e-4, 0.0)
    assert {id(p) for p in decayed["params"]} == weights(trainer, *kernels)
    assert all(weights(trainer, kernel) for kernel in kernels)

    images, labels = next(trainer.dataset.train_batches(20, seed=0, epoch=0))
    gradients = {}
    for l1 in (True, False):
        torch.manual_seed(0)
        trainer = trainer_of("paper", model=model, density=1.0, lr=1e-9, l1=1e20 if l1 else 0.0, **stem)
        trainer.train_step(images, labels)
        gradients[l1] = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    pulled = {name for name in gradients[True] if not torch.equal(gradients[True][name], gradients[False][name])}
    assert pulled == {name for name, p in trainer.model.named_parameters() if id(p) in weights(trainer, 3)}


def test_fast_decays_by_5e_4_and_begins_with_what_learned_better():
    fast = TrainConfig.from_preset("fast")
    assert (fast.weight_decay, fast.init) == (5e-4, "he")


@pytest.mark.parametrize("model", ["vgg5", "resnet20"])
def test_dirac_has_convolutions_pass_their_input_on_and_leaves_everything_else_as_he_draws_it(model):
    built = {}
    for init in ("he", "dirac"):
        torch.manual_seed(0)
        built[init] = models.build(model, in_channels=2, image_size=8, width=0.125, init=init)
    pairs = zip(built["he"].named_modules(), built["dirac"].modules(), strict=True)
    for (name, plain), identity in pairs:
        if isinstance(plain, torch.nn.Conv2d):
            passed = min(plain.in_channels, plain.out_channels)
            x = torch.randn(1, plain.in_channels, 4, 4)
            y = torch.nn.functional.conv2d(x, identity.weight, padding=plain.kernel_size[0] // 2)
            assert torch.equal(y[:, :passed], x[:, :passed]), name
            assert torch.equal(identity.weight[plain.in_channels :], plain.weight[plain.in_channels :]), name
        elif isinstance(plain, torch.nn.Linear):
            assert torch.equal(identity.weight, plain.weight), name


def test_init_is_refused_by_its_names():
    with pytest.raises(ValueError, match=r"^init: expected one of he, dirac, got 'identity'"):
        models.build("vgg5", init="identity")
    with pytest.raises(ValueError, match=r"^init: expected one of he, dirac, got 'identity'"):
        TrainConfig.from_preset(init="identity")


def test_init_reaches_the_network_of_a_run():
    torch.manual_seed(0)
    trainer = trainer_of("fast", init="dirac")
    conv = trainer.model.features[1].conv
    assert conv.weight[0].nonzero().tolist() == [[0, 1, 1]]


def test_every_preset_says_what_it_is_for():
    for name, preset in PRESETS.items():
        assert preset.__doc__.endswith("."), name
        assert dict(preset) == {field: getattr(TrainConfig.from_preset(name), field) for field in preset}
