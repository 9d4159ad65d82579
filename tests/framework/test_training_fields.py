"""What a configuration can ask of a run: held-out images, the best epoch, other weights, frozen parts, an average."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sca
from sca import checkpoint, training
from sca.data import POLICIES, policies
from sca.training import Interrupted, RunFolder, TrainConfig, Trainer
from sca.training.metrics import accuracy
from tests.framework.watched import Watch, assert_equal_state, tiny, trainer_of


def run_in(path: Path, config: TrainConfig, observer: Any = None) -> training.Summary:
    with RunFolder(path) as folder:
        return training.run(config, folder, observer or Watch())


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def resumed_run(config: TrainConfig, folder: Path) -> Trainer:
    """A whole run, to which one that was stopped in between and resumed from a file is equal."""
    whole = trainer_of(config)
    whole.fit()
    stopped = trainer_of(config)
    states = []
    with pytest.raises(Interrupted):
        stopped.fit(Watch(stop_after=3), states.append)
    checkpoint.save(folder / "state", states[-1])
    resumed = trainer_of(config)
    resumed.load_state(checkpoint.load(folder / "state"))
    resumed.fit()
    assert_equal_state(resumed.state(), whole.state())
    return whole


def stopped_run(path: Path, config: TrainConfig, *steps: int) -> training.Summary:
    """A run in a folder that is stopped after each of these steps, and then goes on to its end."""
    for number, step in enumerate(steps):
        with RunFolder(path, "resume" if number else "new") as folder, pytest.raises(Interrupted):
            training.run(config, folder, Watch(stop_after=step))
    with RunFolder(path, "resume") as folder:
        return training.run(config, folder, Watch())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "augmix"}, "policy: expected one of autoaugment, randaugment, trivialaugment, got 'augmix'"),
        ({"validation": -1}, "validation: expected at least 0"),
        ({"keep_best": True}, "keep_best: expected false where validation is 0, got True"),
        ({"freeze": [1]}, "freeze: expected list of str"),
        ({"freeze": "features.0"}, "freeze: expected list"),
        ({"ema": 1.0}, r"ema: expected a share in \[0, 1\)"),
        ({"weights": 3}, "weights: expected str or none"),
    ],
    ids=str,
)
def test_train_config_says_what_it_expected(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        tiny(**changes)


# --- validation ----------------------------------------------------------------------------------------------------


def test_validation_images_are_held_out_by_seed_and_measured_in_place_of_the_test_images(tmp_path, monkeypatch):
    data = training.load_data(tiny())
    trainer = trainer_of(tiny(validation=40))
    held = trainer.dataset
    assert (len(held.train), len(held.validation), len(held.test)) == (88, 40, 64)
    together = {image.numpy().tobytes() for split in (held.train, held.validation) for image in split.images}
    assert together == {image.numpy().tobytes() for image in data.train.images}
    assert torch.equal(held.validation.images, trainer_of(tiny(validation=40, lr=0.1)).dataset.validation.images)
    assert not torch.equal(held.validation.images, trainer_of(tiny(validation=40, seed=1)).dataset.validation.images)
    with pytest.raises(ValueError, match="validation: expected fewer than the 128 training images, got 128"):
        trainer_of(tiny(validation=128))

    looked = []
    batches = sca.data.Dataset.batches
    monkeypatch.setattr(
        sca.data.Dataset, "batches", lambda self, split, size: looked.append(split) or batches(self, split, size)
    )
    summary = run_in(tmp_path, tiny(validation=40))
    assert looked[:5] == ["validation"] * 4 + ["test"]
    assert "validation" not in looked[5:]
    rows = rows_of(tmp_path)
    assert all(0 <= row["validation_accuracy"] <= 1 for row in rows)
    assert ["test_accuracy" in row for row in rows] == [False, False, False, True]
    assert rows[-1]["test_accuracy"] == summary.compacted.accuracy


def test_state_of_a_run_with_other_held_out_images_is_refused():
    state = trainer_of(tiny(validation=40)).state()
    with pytest.raises(ValueError, match="it is of a run with validation 40, not 0"):
        trainer_of(tiny()).load_state(state)


# --- the best epoch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_keep_best_ends_the_run_with_the_best_epoch_however_often_it_was_stopped(tmp_path, ema):
    config = tiny(validation=40, keep_best=True, lr=1.0, density=1.0 if ema else 0.5, ema=ema)
    summary = run_in(tmp_path / "whole", config)
    rows = rows_of(tmp_path / "whole")
    accuracies = [row["validation_accuracy"] for row in rows]
    assert not any("test_accuracy" in row for row in rows)
    best = checkpoint.load(tmp_path / "whole" / "best.safetensors")
    assert best["epoch"] == 1 + accuracies.index(max(accuracies))
    model = training.load_model(tmp_path / "whole")
    test = training.load_data(config).test_batches(64)
    assert accuracy(model, test) == summary.compacted.accuracy
    held = trainer_of(config).dataset
    full = training.load_pruned(tmp_path / "whole")
    assert accuracy(full, held.batches("validation", 40)) == max(accuracies)

    again = stopped_run(tmp_path / "stopped", config, 2, 5, 9)
    assert_equal_state(checkpoint.load(tmp_path / "stopped" / "best.safetensors"), best)
    assert again.compacted.accuracy == summary.compacted.accuracy


def test_a_reference_that_kept_its_best_epoch_is_compared_by_it(tmp_path):
    config = tiny(validation=40, keep_best=True, epochs=2, density=1.0)
    dense = run_in(tmp_path / "dense", config)
    summary = run_in(tmp_path / "run", config.changed(density=0.5, reference=str(tmp_path / "dense")))
    assert summary.dense.accuracy == dense.compacted.accuracy
    checkpoint.save(tmp_path / "dense" / "best.safetensors", {"validation_accuracy": 1.0, "model": 3})
    with pytest.raises(checkpoint.CheckpointError, match=r"best\.safetensors: not the best weights of this run"):
        run_in(tmp_path / "other", config.changed(density=0.5, reference=str(tmp_path / "dense")))


# --- weights of another run ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The folder of a pruned run of two epochs."""
    path = tmp_path_factory.mktemp("source") / "run"
    run_in(path, tiny(epochs=2))
    return path


@pytest.mark.parametrize("place", ["folder", "checkpoint", "sca.save"])
def test_weights_start_a_run_with_those_and_the_active_channels_of_another(source, tmp_path, place):
    file = {"folder": source, "checkpoint": source / "checkpoint.safetensors", "sca.save": tmp_path / "saved"}[place]
    held = training.load_pruned(source)
    sca.save(held, tmp_path / "saved")
    trainer = trainer_of(tiny(weights=str(file), seed=3, density=0.3))
    assert_equal_state(dict(trainer.model.state_dict()), dict(held.state_dict()))
    groups = {name: members.group for name, members in sca.structure.groups.find_groups(held).items()}
    assert all(torch.equal(group.active, groups[name].active) for name, group in trainer.groups.items())
    assert trainer.density == pytest.approx(0.5, abs=0.05)
    assert trainer.evaluate() == accuracy(held, trainer.test)
    trainer.fit()
    assert trainer.density < 0.35


def test_a_run_with_weights_resumes_bit_for_bit_and_needs_them_no_more(source, tmp_path):
    moved = tmp_path / "source"
    moved.mkdir()
    (moved / "checkpoint.safetensors").write_bytes((source / "checkpoint.safetensors").read_bytes())
    config = tiny(weights=str(moved), epochs=2, density=1.0, lr=0.01)
    run_in(tmp_path / "whole", config)
    with RunFolder(tmp_path / "run") as folder, pytest.raises(Interrupted):
        training.run(config, folder, Watch(stop_after=3))
    (moved / "checkpoint.safetensors").unlink()
    with RunFolder(tmp_path / "run", "resume") as folder:
        training.run(config, folder, Watch())
    whole, resumed = (checkpoint.load(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "run"))
    assert_equal_state(resumed, whole)
    assert rows_of(tmp_path / "run")[-1]["density"] == pytest.approx(0.5, abs=0.05)  # nothing was pruned, or came back
    with pytest.raises(ValueError, match=r"weights: expected the folder of a run, .* got .*source \(No such file or"):
        run_in(tmp_path / "other", config)


def test_weights_of_another_number_of_classes_leave_the_classifier_as_it_was(source, tmp_path):
    model = sca.models.build(**{**training.load_pruned(source).config, "num_classes": 7})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training.weights.start_from(model, source)
    held = training.load_pruned(source).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name.startswith("classifier") else held[name]), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0.25}, r"features\.0\.conv\.weight: expected \[16, 1, 3, 3\], got \[8, 1, 3, 3\]"),
        ({"model": "vgg9"}, r"features\.1\.conv\.weight: expected \[8, 8, 3, 3\], got \[16, 8, 3, 3\]"),
        ({"neuron": "plif"}, r"features\.0\.neuron\.w: expected, got nothing"),
    ],
    ids=str,
)
def test_weights_of_another_network_are_refused_by_the_name_of_a_tensor(source, changes, message):
    with pytest.raises(ValueError, match=rf"^weights: .*checkpoint\.safetensors: {message}"):
        trainer_of(tiny(weights=str(source), **changes))


def test_weights_that_are_none_are_refused_by_the_name_of_their_file_and_change_nothing(source, tmp_path):
    with pytest.raises(ValueError, match=r"weights: .*model\.safetensors: .*it is a compacted network: name the run's"):
        trainer_of(tiny(weights=str(source / "model.safetensors")))
    with pytest.raises(checkpoint.CheckpointError, match=r"weights: .*config\.json: not a checkpoint"):
        trainer_of(tiny(weights=str(source / "config.json")))
    sca.save(torch.nn.Linear(2, 2), tmp_path / "theirs.safetensors")
    with pytest.raises(checkpoint.CheckpointError, match=r"weights: .*Linear for .*theirs\.safetensors"):
        trainer_of(tiny(weights=str(tmp_path / "theirs.safetensors")))
    state = checkpoint.load(source / "checkpoint.safetensors")
    model = sca.models.build(**state["architecture"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    file = tmp_path / "odd.safetensors"
    for part, value, message in (
        ("model", 3, "not the weights of a run"),
        ("model", {"a": 3}, "not the weights of a run"),
        ("active", {"conv1": torch.tensor([0.5])}, "not the weights of a run"),
        ("active", {**state["active"], "conv9": torch.tensor([1])}, "channel groups of the network, which differ in"),
        ("active", {**state["active"], "fc1": torch.tensor([99])}, r"indices: expected unique channels in \[0, 64\)"),
    ):
        checkpoint.save(file, {**state, part: value})
        with pytest.raises(ValueError, match=rf"weights: .*odd\.safetensors: .*{message}"):
            training.weights.start_from(model, file)
        assert_equal_state(dict(model.state_dict()), before)
    assert all(members.group.all_active for members in sca.structure.groups.find_groups(model).values())


# --- frozen parts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.5, 1.0])
def test_frozen_modules_keep_weights_and_statistics_and_their_activity_is_recorded(density):
    config = tiny(freeze=["features.0", "features.1.neuron"], density=density, epochs=2)
    trainer = trainer_of(config)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.fit()
    regrown = {"features.0.conv.weight"} if density < 1 else set()  # a channel that returns may begin anew
    for name, value in trainer.model.state_dict().items():
        kept = name.startswith(("features.0.", "features.1.neuron."))
        assert kept == torch.equal(value, before[name]) or name in regrown, name
    assert trainer.history[-1]["firing_rates"].keys() == trainer.groups.keys()
    held = {p for group in trainer.optimizer.param_groups for p in group["params"]}
    assert len(held) == sum(p.requires_grad for p in trainer.model.parameters())
    assert trainer.density == pytest.approx(density, abs=0.05)


def test_frozen_runs_resume_bit_for_bit(tmp_path):
    resumed_run(tiny(freeze=["features.[01]"], epochs=2), tmp_path)


def test_freeze_names_a_pattern_that_fits_nothing():
    with pytest.raises(ValueError, match=r"freeze: expected patterns of the network's modules \(features, features.0,"):
        trainer_of(tiny(freeze=["layer1.*"]))


# --- the average ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.5, 1.0])
def test_average_is_torchs_and_what_is_tested_saved_and_resumed(tmp_path, density):
    config = tiny(ema=0.8, density=density)
    trainer = trainer_of(config)
    average = AveragedModel(trainer.model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
    tested = []  # whether the weights themselves were
    trainer.model.register_forward_pre_hook(lambda model, inputs: tested.append(not model.training))
    trainer.fit(Watch(lambda trainer: average.update_parameters(trainer.model)))
    assert tested
    assert not any(tested)
    dormant = density < 1
    if not dormant:  # torch's own copy does not begin anew what an update regrows
        assert_equal_state(dict(trainer.average.module.state_dict()), dict(average.module.state_dict()))
    assert trainer.history[-1]["test_accuracy"] == accuracy(trainer.average.module, trainer.test)
    assert sca.cost.connectivity(trainer.average.module) == trainer.history[-1]["connectivity"]
    assert all(getattr(module, "activity", None) is None for module in trainer.average.modules())

    summary = stopped_run(tmp_path, config, 11)
    assert_equal_state(checkpoint.load(tmp_path / "checkpoint.safetensors"), checkpoint_of(trainer, tmp_path))
    assert summary.compacted.accuracy == trainer.history[-1]["test_accuracy"]
    (tmp_path / "model.safetensors").unlink()
    test = training.load_data(config).test_batches(64)
    assert accuracy(training.load_model(tmp_path), test) == summary.compacted.accuracy


def checkpoint_of(trainer: Trainer, folder: Path) -> Any:
    """The trainer's state as a file gives it back."""
    checkpoint.save(folder / "state", trainer.state())
    return checkpoint.load(folder / "state")


def test_average_of_a_frozen_or_fine_tuned_run_is_that_of_its_structure(tmp_path):
    run_in(tmp_path / "source", tiny(epochs=1))
    trainer = trainer_of(tiny(weights=str(tmp_path / "source"), ema=0.5, density=1.0, freeze=["features.0"], epochs=1))
    assert sca.cost.connectivity(trainer.average.module) < 0.9
    trainer.fit()
    assert trainer.history[-1]["test_accuracy"] == trainer.evaluate()


# --- growing time steps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_time_growth_presents_images_for_fewer_steps_at_first_however_often_it_was_stopped(tmp_path, ema):
    config = tiny(time_steps=4, time_growth=(0.25, 0.99), ema=ema)  # the last epoch has all of them
    trained, tested = [], []
    trainer = trainer_of(config)
    trainer.model.register_forward_hook(lambda model, inputs, logits: trained.append(len(logits)))
    trainer.result.register_forward_hook(
        lambda model, inputs, logits: None if model.training else tested.append(len(logits))
    )
    trained_by_step = []
    trainer.fit(Watch(lambda trainer: trained_by_step.append(trained[-1])))
    assert trained_by_step == [1] * 4 + [2] * 8 + [4] * 4
    assert tested == [1, 2, 2, 4]  # each epoch as it was trained
    assert trainer.result.time_steps == 4

    summary = stopped_run(tmp_path, config, 2, 7)
    assert_equal_state(checkpoint.load(tmp_path / "checkpoint.safetensors"), checkpoint_of(trainer, tmp_path))
    assert training.load_model(tmp_path).time_steps == 4
    assert summary.compacted.accuracy == trainer.evaluate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_growth": (0.5, 0.2)}, r"time_growth: expected rising shares of the run, got \(0.5, 0.2\)"),
        ({"time_growth": (0.2, 0.5)}, "time_growth: expected time_steps to be a multiple of 4, .* got 2"),
        ({"time_growth": (1.0,)}, r"time_growth: expected shares in \(0, 1\), got '1.0'"),
    ],
    ids=str,
)
def test_time_growth_says_what_it_expected(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        tiny(**changes)


def test_time_growth_has_no_last_batch_of_one_value_for_each_channel():
    last = {"limit_train": 97, "model": "vgg9", "width": 0.1}  # maps of 1 x 1 before the classifier
    trainer_of(tiny(**last))
    with pytest.raises(ValueError, match="batch_size: expected no batch of one image at time_steps = 1"):
        trainer_of(tiny(**last, time_growth=(0.5,)))


# --- an analog start -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"checkpointing": True}, {"ema": 0.5, "time_growth": (0.5,)}], ids=str)
def test_analog_start_becomes_spikes_step_by_step_however_often_it_was_stopped(tmp_path, changes):
    config = tiny(analog_start=(0.25, 0.5), **changes)
    shares = []
    trainer = trainer_of(config)
    trainer.model.register_forward_pre_hook(
        lambda model, inputs: shares.append(None if model.analog is None else model.analog.item())
    )
    by_step = []
    trainer.fit(Watch(lambda trainer: by_step.append(shares[-1])))
    assert by_step == [1.0] * 5 + [0.75, 0.5, 0.25] + [None] * 8
    assert trainer.result.analog is None

    summary = stopped_run(tmp_path, config, 2, 6)
    assert_equal_state(checkpoint.load(tmp_path / "checkpoint.safetensors"), checkpoint_of(trainer, tmp_path))
    assert summary.compacted.accuracy == trainer.evaluate()


@pytest.mark.parametrize("changes", [{"target": "synops"}, {"allocation": "synops"}], ids=str)
def test_analog_start_is_over_before_spikes_are_counted(changes):
    with pytest.raises(
        ValueError, match=r"^prune_start: expected at least 0\.5, where analog_start ends, .* got 0\.15"
    ):
        tiny(analog_start=(0.1, 0.5), **changes)
    tiny(analog_start=(0.1, 0.5), prune_start=0.5, **changes)


@pytest.mark.parametrize("value", [(0.5,), (0.5, 0.5), (0.1, 0.2, 0.3)])
def test_analog_start_says_what_it_expected(value):
    with pytest.raises(ValueError, match=r"^analog_start: expected two rising shares of the run, got \("):
        tiny(analog_start=value)


# --- augmentation policies -----------------------------------------------------------------------------------------


def stand_in(monkeypatch) -> None:
    """A kornia whose policies draw as kornia's do: from torch's global generator."""

    class Shift:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            pass

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            assert images.shape[1] == 3
            assert images.min() >= 0
            assert images.max() <= 1
            return (images * torch.rand(len(images), 1, 1, 1)).clamp(0, 1)

    augmentation = types.ModuleType("kornia.augmentation")
    augmentation.auto = types.SimpleNamespace(AutoAugment=Shift, RandAugment=Shift, TrivialAugment=Shift)
    monkeypatch.setitem(sys.modules, "kornia", types.ModuleType("kornia"))
    monkeypatch.setitem(sys.modules, "kornia.augmentation", augmentation)


@pytest.fixture
def forgetful() -> Any:
    """No policy is kept from before, or for what comes."""
    policies._policy.cache_clear()
    yield
    policies._policy.cache_clear()


@pytest.fixture(params=["kornia", "stand-in"])
def kornia(request, monkeypatch, forgetful) -> None:
    """The library, or what stands in for it where it is missing."""
    if request.param == "stand-in":
        stand_in(monkeypatch)
    elif importlib.util.find_spec("kornia") is None:
        pytest.skip("no kornia")


@pytest.mark.parametrize("policy", POLICIES)
def test_policy_changes_images_by_seed_epoch_and_position_alone(kornia, policy):
    data = sca.data.load("digits")

    def draw(start: int = 0, **changes: Any) -> list[torch.Tensor]:
        arguments = {"seed": 3, "epoch": 1, "policy": policy, **changes}
        return [images for images, _ in data.train_batches(64, start=start, **arguments)]

    state = torch.get_rng_state()
    whole = draw()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(9)
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], draw(4), strict=True))
    for other in (draw(policy=None), draw(seed=4), draw(epoch=2)):
        assert not all(torch.equal(a, b) for a, b in zip(whole, other, strict=True))
    assert whole[0].dtype == torch.float32
    assert all(images.is_contiguous(memory_format=torch.channels_last) for images in whole)
    lowest, highest = (0 - 0.3053) / 0.3760, (1 - 0.3053) / 0.3760
    assert min(images.min() for images in whole) >= lowest - 1e-5
    assert max(images.max() for images in whole) <= highest + 1e-5


def test_policy_on_coloured_images(kornia):
    images = torch.rand(8, 3, 16, 16)
    changed = policies.augmented(images, "trivialaugment", torch.Generator().manual_seed(1))
    assert changed.shape == images.shape
    assert not torch.equal(changed, images)
    again = policies.augmented(images, "trivialaugment", torch.Generator().manual_seed(1))
    assert torch.equal(changed, again)


def test_policy_of_a_run_is_resumed_bit_for_bit(kornia, tmp_path):
    config = tiny(policy="randaugment", epochs=2)
    whole = resumed_run(config, tmp_path)
    plain = trainer_of(config.changed(policy=None))
    plain.fit()
    assert plain.history[0]["loss"] != whole.history[0]["loss"]


def test_policy_without_kornia_is_refused_in_a_sentence(monkeypatch, forgetful):
    monkeypatch.setitem(sys.modules, "kornia.augmentation", None)
    with pytest.raises(ImportError, match=r"policy: randaugment needs kornia: pip install 'sca_kernels\[augment\]'"):
        trainer_of(tiny(policy="randaugment"))


def test_policy_refuses_images_of_other_channels(monkeypatch, forgetful):
    stand_in(monkeypatch)
    with pytest.raises(ValueError, match="policy: expected images of 1 or 3 channels, got 2"):
        policies.require_policy("autoaugment", 2)


# --- TensorBoard ---------------------------------------------------------------------------------------------------


def test_tensorboard_shows_epochs_and_updates_once_after_a_resumption(tmp_path):
    pytest.importorskip("tensorboard", reason="no tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny(tensorboard=True)
    stopped_run(tmp_path, config, 6)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    rows = rows_of(tmp_path)
    shown = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    for name, key in ("epoch/loss", "loss"), ("epoch/test_accuracy", "test_accuracy"):
        assert shown[name] == [(row["step"], pytest.approx(row[key])) for row in rows]
    assert [step for step, _ in shown["active/conv1"]] == [4, 8, 12, 16]
    updates = [json.loads(line) for line in (tmp_path / "updates.jsonl").read_text().splitlines()]
    assert [step for step, _ in shown["update/density"]] == [update["step"] for update in updates]
    with RunFolder(tmp_path, "overwrite"):
        assert not (tmp_path / "tensorboard").exists()


def test_tensorboard_follows_no_link(tmp_path):
    pytest.importorskip("tensorboard", reason="no tensorboard")
    (tmp_path / "mine").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").symlink_to(tmp_path / "mine")
    with RunFolder(tmp_path / "run", "overwrite") as folder, pytest.raises(ValueError, match="is a symbolic link"):
        training.run(tiny(tensorboard=True), folder, Watch())
    assert not list((tmp_path / "mine").iterdir())


def test_tensorboard_that_is_missing_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"tensorboard: pip install 'sca_kernels\[tensorboard\]'"):
        run_in(tmp_path / "run", tiny(tensorboard=True))
    assert not (tmp_path / "run").exists()
