"""sca.training: what sca train does, resumed bit for bit, and what a run leaves behind."""

from __future__ import annotations

import functools
import json

import pytest
import torch

from sca import checkpoint, training
from sca.training import RunFolder
from sca.training.loop import Interrupted
from sca.training.metrics import accuracy
from tests.framework.watched import Watch, assert_equal_state, tiny, trainer_of

# --- the loop ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted() -> dict:
    """Final state of a run that nobody disturbed."""
    trainer, watch = trainer_of(tiny()), Watch()
    trainer.fit(watch, lambda state: None, lambda row: None)
    return trainer.state()


def test_trainer_prunes_and_regrows_while_training(uninterrupted):
    history = uninterrupted["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert history[0]["density"] > history[-1]["density"]
    assert history[-1]["density"] == pytest.approx(0.5, abs=0.02)
    assert history[-1]["connectivity"] < history[-1]["density"]
    assert history[-1]["loss"] < history[0]["loss"]
    assert all(0 < row["firing_rate"] < 1 and row["samples_per_second"] > 0 for row in history)


def test_trainer_repeats_itself_bit_for_bit(uninterrupted):
    trainer = trainer_of(tiny())
    trainer.fit(Watch(), lambda state: None, lambda row: None)
    assert_equal_state(trainer.state(), uninterrupted)


def test_trainer_with_checkpointing_goes_through_the_same_states(uninterrupted):
    trainer, watch = trainer_of(tiny(checkpointing=True)), Watch()
    trainer.fit(watch, lambda state: None, lambda row: None)
    assert trainer.model.checkpointing
    for part in ("model", "optimizer", "active", "sums"):
        assert_equal_state(trainer.state()[part], uninterrupted[part])


def test_trainer_compiled_prunes_and_learns(monkeypatch):
    # The captured graphs run as they are: translating them takes minutes, and is not this package's.
    ran = []

    def backend(graph, inputs):
        return lambda *arguments: ran.append(graph) or graph(*arguments)

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    monkeypatch.setattr("sca.training.loop.check_compile", lambda device: None)
    torch._dynamo.reset()
    trainer = trainer_of(tiny(compile=True, epochs=2))
    trainer.fit(Watch(), lambda state: None, lambda row: None)
    assert ran
    assert trainer.density == pytest.approx(0.5, abs=0.02)
    assert trainer.history[-1]["loss"] < trainer.history[0]["loss"]
    ran.clear()
    trainer.leave_ranks()  # as at the end of a run, whose speed is that of the steps it took
    trainer.train_step(*next(trainer.dataset.train_batches(8, seed=0, epoch=0)))
    assert ran


@pytest.mark.parametrize("step", [1, 6, 8, 11], ids=lambda step: f"after-step-{step}")
def test_trainer_resumed_after_any_step_equals_the_uninterrupted_run(uninterrupted, tmp_path, step):
    path = tmp_path / "state.safetensors"
    with pytest.raises(Interrupted):
        trainer_of(tiny()).fit(Watch(stop_after=step), lambda state: checkpoint.save(path, state), lambda row: None)
    torch.manual_seed(99)
    resumed = trainer_of(tiny())
    resumed.load_state(checkpoint.load(path))
    assert resumed.step == step
    resumed.fit(Watch(), lambda state: None, lambda row: None)
    assert_equal_state(resumed.state(), uninterrupted)


def test_trainer_another_seed_is_another_run(uninterrupted):
    trainer = trainer_of(tiny(seed=1, epochs=1))
    trainer.fit(Watch(), lambda state: None, lambda row: None)
    assert trainer.history[0]["loss"] != uninterrupted["history"][0]["loss"]


def test_trainer_decays_weights_of_convolutions_alone():
    trainer = trainer_of(tiny())
    decayed, others = trainer.optimizer.param_groups
    assert decayed["weight_decay"] > 0
    assert others["weight_decay"] == 0
    assert {p.dim() for p in decayed["params"]} == {4}
    assert {p.dim() for p in others["params"]} == {1, 2}
    total = sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    assert total == len(list(trainer.model.parameters()))


def test_trainer_says_which_batch_of_one_image_has_no_variance():
    with pytest.raises(ValueError, match=r"batch_size: .* one image at time_steps = 1, .* 65 images in batches of 32"):
        trainer_of(tiny(time_steps=1, limit_train=65))
    trainer_of(tiny(time_steps=2, limit_train=65, epochs=1)).fit(Watch(), lambda state: None, lambda row: None)
    trainer_of(tiny(time_steps=1, limit_train=66, epochs=1)).fit(Watch(), lambda state: None, lambda row: None)


def test_trainer_compile_without_a_compiler_is_told_in_a_sentence(monkeypatch):
    def no_compiler(*_, **__):
        raise RuntimeError("InvalidCxxCompiler: none found\n" + 137 * "  File somewhere\n")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(ValueError, match=r"^compile: torch\.compile does not work here") as raised:
        trainer_of(tiny(compile=True))
    assert "\n" not in str(raised.value)
    assert "g++" in str(raised.value)


def test_trainer_l1_pulls_weights_towards_zero():
    weights = {}
    for l1 in (0.0, 0.01):
        trainer = trainer_of(tiny(l1=l1, density=1.0, epochs=2))
        trainer.fit(Watch(), lambda state: None, lambda row: None)
        weights[l1] = float(trainer.model.features[1].conv.weight.detach().abs().mean())
    assert weights[0.01] < weights[0.0]


def test_trainer_refuses_a_density_that_the_floors_keep_out_of_reach_and_names_the_least():
    with pytest.raises(ValueError, match=r"density: expected at least 0\.3077 of channels, .* got 0\.1"):
        trainer_of(tiny(density=0.1, min_channels=8))
    least = trainer_of(tiny(target="parameters")).scheduler.least_share
    with pytest.raises(ValueError, match=f"density: expected at least {least:.4f} of parameters"):
        trainer_of(tiny(density=0.9 * least, target="parameters"))
    reached = trainer_of(tiny(density=1.01 * least, target="parameters", epochs=2))
    reached.fit(Watch(), lambda state: None, lambda row: None)
    assert least <= reached.history[-1]["connectivity"] <= 1.01 * least


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bfloat16"},
        {"loss": "mean"},
        {"neuron": "plif"},
        {"cutout": 3},
        {"regrow": "random", "regrow_init": "zero"},
        {"model": "preresnet20", "stem": "cifar", "prune_stream": True, "min_channels": 1},
    ],
    ids=str,
)
def test_trainer_learns_with_each_recipe(changes):
    trainer = trainer_of(tiny(**changes))
    trainer.fit(Watch(), lambda state: None, lambda row: None)
    assert trainer.history[-1]["loss"] < trainer.history[0]["loss"]


# --- whole runs ----------------------------------------------------------------------------------------------------


def test_run_leaves_a_log_a_checkpoint_a_compacted_model_a_summary_and_a_plot(tmp_path):
    config = tiny()
    with RunFolder(tmp_path) as folder:
        summary = training.run(config, folder, Watch())
    rows = [json.loads(line) for line in folder.log.read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert folder.plot.read_bytes().startswith(b"\x89PNG")
    assert json.loads(folder.summary.read_text())["compacted"]["accuracy"] == summary.compacted.accuracy
    assert summary.dense.accuracy is None
    assert summary.compacted.connectivity < 0.4
    assert summary.compacted.parameters < 0.5 * summary.dense.parameters

    model = training.load_model(tmp_path)
    data = training.load_data(config)
    assert accuracy(model, data.test_batches(64)) == summary.compacted.accuracy
    folder.model.unlink()
    from_checkpoint = training.load_model(tmp_path)
    images, _ = next(iter(data.test_batches(8)))
    assert torch.equal(from_checkpoint(images), model(images))


def test_run_with_a_trained_reference_measures_the_dense_network(tmp_path):
    config = tiny(epochs=2, reference="train")
    with RunFolder(tmp_path) as folder:
        summary = training.run(config, folder, Watch())
    assert summary.dense.accuracy is not None
    assert summary.dense.synops > 0
    assert (tmp_path / "dense" / "metrics.jsonl").exists()

    other = tmp_path / "other"
    with RunFolder(other) as folder:
        again = training.run(config.changed(reference=str(tmp_path / "dense"), seed=1), folder, Watch())
    assert again.dense.accuracy == summary.dense.accuracy
    with RunFolder(tmp_path / "third") as folder, pytest.raises(ValueError, match="reference: expected a dense run"):
        training.run(config.changed(reference=str(other)), folder, Watch())


@pytest.mark.parametrize(
    "changes",
    [
        {"neuron": "plif"},
        {"model": "preresnet20", "stem": "cifar", "prune_stream": True, "min_channels": 1},
        {"model": "sew_resnet18", "width": 0.0625, "min_channels": 1},
    ],
    ids=["vgg5", "preresnet20", "sew_resnet18"],
)
def test_run_log_summary_cost_and_compacted_model_agree(tmp_path, changes):
    with RunFolder(tmp_path) as folder:
        summary = training.run(tiny(epochs=1, limit_train=64, **changes), folder, Watch())
    (row,) = [json.loads(line) for line in folder.log.read_text().splitlines()]
    small, cost = summary.compacted, summary.cost
    assert small.connectivity == cost["connectivity"] == pytest.approx(row["connectivity"])
    assert small.parameters == cost["active_parameters"]
    assert summary.dense.parameters == cost["parameters"]
    assert small.parameters == sum(p.numel() for p in training.load_model(tmp_path).parameters())
    assert sum(p.numel() for p in training.load_pruned(tmp_path).parameters()) == cost["parameters"]


def test_run_of_a_dense_network_has_no_second_column(tmp_path):
    with RunFolder(tmp_path) as folder:
        summary = training.run(tiny(density=1.0, epochs=1), folder, Watch())
    assert summary.dense is None
    assert summary.compacted.connectivity == 1


def test_load_model_refuses_a_checkpoint_of_something_else(tmp_path):
    path = tmp_path / "odd.safetensors"
    checkpoint.save(path, {"weights": torch.zeros(2)})
    with pytest.raises(checkpoint.CheckpointError, match=r"odd\.safetensors"):
        training.load_model(path)
