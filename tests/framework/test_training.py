"""sca.training: configuration, losses, checkpoints and files, resuming bit for bit, and what a run leaves behind."""

from __future__ import annotations

import errno
import functools
import json
import math
import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import sca
from sca import checkpoint, training
from sca.files import write_whole
from sca.training import RunFolder, TrainConfig
from sca.training.loop import Interrupted, Trainer, learning_rate
from sca.training.losses import LOSSES
from sca.training.metrics import accuracy
from sca.training.speed import compare_speed
from tests.framework.watched import assert_equal_state

TINY = {
    "data": "digits",
    "model": "vgg5",
    "width": 0.125,
    "time_steps": 2,
    "epochs": 4,
    "batch_size": 32,
    "limit_train": 128,
    "limit_test": 64,
    "density": 0.5,
    "min_channels": 2,
    "reference": None,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from threads, and lose a lot where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Watch:
    """An observer that remembers, and asks to stop after a number of steps."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.rows: list[dict] = []
        self._stop_after = stop_after
        self.stop_requested = False

    def on_start(self, trainer: Trainer) -> None:
        pass

    def on_batch(self, trainer: Trainer) -> None:
        self.stop_requested = trainer.step == self._stop_after

    def on_epoch(self, row: dict) -> None:
        self.rows.append(row)


def tiny(**changes) -> TrainConfig:
    return TrainConfig.from_preset(**{**TINY, **changes})


def trainer_of(config: TrainConfig) -> Trainer:
    return Trainer(config, training.load_data(config))


# --- configuration -------------------------------------------------------------------------------------------------


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
    with pytest.raises(ValueError, match=next(iter(changes))):
        TrainConfig.from_preset(**changes)


def test_train_config_refuses_unknown_presets_and_fields():
    with pytest.raises(ValueError, match="preset: expected one of fast, paper, digits, got 'slow'"):
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


# --- measuring -----------------------------------------------------------------------------------------------------


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


# --- files ---------------------------------------------------------------------------------------------------------

TREE = {
    "weights": torch.randn(3, 4),
    "filters": torch.randn(2, 3, 2, 2).contiguous(memory_format=torch.channels_last),
    "nested": {0: {"step": torch.tensor(7), "betas": (0.9, 0.999)}, "list": [1, 2.5, None, True, "text", []]},
    "bytes": torch.arange(5, dtype=torch.uint8),
    "low": torch.randn(3).to(torch.bfloat16),
    "empty": {},
}


def test_checkpoint_gives_back_the_tree_it_was_given(tmp_path):
    path = tmp_path / "tree.safetensors"
    checkpoint.save(path, TREE)
    back = checkpoint.load(path)
    assert_equal_state(TREE, back)
    assert isinstance(back["nested"][0]["betas"], tuple)
    assert back["filters"].stride() == TREE["filters"].stride()


def test_checkpoint_refuses_what_it_cannot_store(tmp_path):
    with pytest.raises(TypeError, match="got set in bad"):
        checkpoint.save(tmp_path / "x", {"bad": {1, 2}})
    with pytest.raises(TypeError, match="keys"):
        checkpoint.save(tmp_path / "x", {"a/b": 1})
    assert not any(tmp_path.iterdir())


def test_checkpoint_load_refuses_truncated_files_at_any_length(tmp_path):
    path = tmp_path / "tree.safetensors"
    checkpoint.save(path, TREE)
    content = path.read_bytes()
    for length in range(0, len(content), 37):
        path.write_bytes(content[:length])
        with pytest.raises(checkpoint.CheckpointError, match=r"tree\.safetensors"):
            checkpoint.load(path)


def test_checkpoint_load_refuses_any_flipped_bit_that_changes_the_content(tmp_path):
    path = tmp_path / "tree.safetensors"
    checkpoint.save(path, TREE)
    content = path.read_bytes()
    refused = 0
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(bytes(damaged))
        try:
            back = checkpoint.load(path)
        except checkpoint.CheckpointError:
            refused += 1
        else:
            assert_equal_state(TREE, back)  # padding or white space: nothing was lost
    assert refused > 0.9 * len(content)


def test_checkpoint_load_refuses_foreign_files(tmp_path):
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(checkpoint.CheckpointError, match=r"foreign\.safetensors: expected format"):
        checkpoint.load(path)
    torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(checkpoint.CheckpointError, match=r"foreign\.safetensors"):
        checkpoint.load(path)
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "absent.safetensors")


def crafted(path: Path, description: str, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    """A file with a right digest around any tree: what somebody could send."""
    tensors = tensors or {}
    metadata = {
        "format": checkpoint.FORMAT,
        "tree": description,
        "digest": checkpoint.digest(tensors, description),
    }
    save_file(tensors, path, metadata)
    return path


@pytest.mark.parametrize(
    "description",
    [
        *("", "{", "[" * 100_000, '{"list":' * 50_000, '{"dict": [["a", ' * 20_000),
        *("{}", '{"list": 3}', '{"list": null}', '{"tuple": [{}]}', '{"set": [1]}', '{"list": [], "dict": []}'),
        *('{"dict": 3}', '{"dict": ["ab", "c"]}', '{"dict": [[1]]}', '{"dict": [[[1], 2]]}', '{"dict": [[{}, 2]]}'),
        *('{"tensor": "absent"}', '{"tensor": ["a"]}', '{"tensor": {}}', '{"channels_last": "a"}'),
    ],
    ids=lambda text: f"{text[:24]} ({len(text)})",
)
def test_checkpoint_load_refuses_crafted_trees(tmp_path, description):
    path = crafted(tmp_path / "odd.safetensors", description, {"a": torch.zeros(3)})
    with pytest.raises(checkpoint.CheckpointError, match=r"odd\.safetensors: not the tree of a checkpoint"):
        checkpoint.load(path)


ARCHITECTURE = {"name": "vgg5", "num_classes": 10, "in_channels": 1, "image_size": 8, "width": 0.125, "time_steps": 2}


@pytest.mark.parametrize(
    "changes",
    [
        *({"architecture": value} for value in (None, 3, "vgg5", [], {}, {"name": []}, {**ARCHITECTURE, "sise": 1})),
        *({"architecture": {**ARCHITECTURE, "width": value}} for value in (1e5, 1e300, "1", None, math.nan)),
        *({"architecture": {**ARCHITECTURE, "num_classes": value}} for value in (10**12, 10**30, -1, "x")),
        {"architecture": {**ARCHITECTURE, "image_size": [10**9, 10**9]}},
        *({"model": value} for value in (None, 3, [], {}, {"classifier.weight": 3}, {"a": torch.zeros(2)})),
        *({"active": value} for value in (3, [], {"conv9": torch.tensor([0])}, {"conv1": 3}, {"conv1": [99]})),
        *({"active": {"conv1": value}} for value in (torch.tensor([0.5]), torch.tensor([-1]), torch.tensor([[0]]))),
    ],
    ids=lambda changes: " ".join(f"{changes}".split())[:60],
)
def test_load_model_refuses_crafted_models_by_the_name_of_their_file(tmp_path, changes):
    model = sca.models.build(**ARCHITECTURE)
    path = tmp_path / "odd.safetensors"
    checkpoint.save(path, {"architecture": model.config, "model": model.state_dict(), "active": {}, **changes})
    with pytest.raises(checkpoint.CheckpointError, match=r"odd\.safetensors: not a model of this version"):
        training.load_model(path)


@pytest.mark.parametrize("part", ["model", "optimizer", "scheduler", "epoch", "sums", "history", "random_state"])
def test_run_refuses_a_state_that_was_made_up(tmp_path, part):
    config = tiny()
    state = trainer_of(config).state()
    for value in None, 3, {"a": 1}, [1]:
        with RunFolder(tmp_path / "run", "overwrite") as folder:
            folder.write_config(config)
            folder.save_checkpoint({**state, part: value})
            with pytest.raises(checkpoint.CheckpointError, match=r"not (the state|a checkpoint) of this run"):
                training.run(config, folder, Watch())


def test_write_whole_replaces_links_and_leaves_their_targets_alone(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    for name in ("file", "file.partial"):
        (tmp_path / name).symlink_to(mine)
    write_whole(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert not (tmp_path / "file").is_symlink()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "mine"]
    assert mine.read_text() == "mine"


def test_run_folder_follows_no_link(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").symlink_to(mine / "config.json")
    with pytest.raises(ValueError, match="out: expected a folder to write to"):
        RunFolder(run)
    (run / ".lock").unlink()
    (run / "dense").symlink_to(mine)
    for name in ("config.json", "checkpoint.safetensors", "checkpoint.new.safetensors", "metrics.jsonl.partial"):
        (run / name).symlink_to(mine / "config.json")
    with RunFolder(run, "overwrite") as folder, pytest.raises(ValueError, match="dense is a symbolic link"):
        training.run(tiny(epochs=1, reference="train"), folder, Watch())
    with RunFolder(run, "overwrite") as folder:
        training.run(tiny(epochs=1, limit_train=64), folder, Watch())
    assert (mine / "config.json").read_text() == "mine"
    assert [file.name for file in mine.iterdir()] == ["config.json"]


def test_run_folder_refuses_a_lock_that_is_no_file(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(ValueError, match=r"out: expected a folder to write to, got .* \(not a regular file\)"):
        RunFolder(tmp_path)


def test_run_folder_that_held_nothing_is_left_as_it_was(tmp_path):
    with RunFolder(tmp_path):
        pass
    with RunFolder(tmp_path / "a" / "b"):
        pass
    assert not list(tmp_path.iterdir())


def full_disk(monkeypatch) -> None:
    def fsync(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


def test_write_whole_leaves_the_old_file_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"old")
    full_disk(monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_run_folder_keeps_both_checkpoints_when_the_disk_is_full(tmp_path, monkeypatch):
    with RunFolder(tmp_path) as folder:
        folder.save_checkpoint({"n": 1})
        folder.save_checkpoint({"n": 2})
        full_disk(monkeypatch)
        with pytest.raises(OSError, match="No space left"):
            folder.save_checkpoint({"n": 3})
        assert checkpoint.load(folder.checkpoint) == {"n": 2}
        assert checkpoint.load(folder.previous) == {"n": 1}


def test_run_folder_falls_back_to_the_last_good_checkpoint_and_names_the_damaged_one(tmp_path, caplog):
    with RunFolder(tmp_path) as folder:
        assert folder.load_checkpoint() is None
        folder.save_checkpoint({"n": 1})
        folder.save_checkpoint({"n": 2})
        folder.checkpoint.write_bytes(folder.checkpoint.read_bytes()[:-3])
        assert folder.load_checkpoint() == {"n": 1}
        assert str(folder.checkpoint) in caplog.text
        folder.previous.write_bytes(b"")
        with pytest.raises(checkpoint.CheckpointError, match=r"checkpoint\.safetensors"):
            folder.load_checkpoint()


def test_run_folder_refuses_a_folder_that_holds_a_run(tmp_path):
    with RunFolder(tmp_path) as folder:
        folder.write_config(tiny())
    with pytest.raises(ValueError, match="already holds a run"):
        RunFolder(tmp_path)
    assert RunFolder.stored_config(tmp_path) == tiny()
    with RunFolder(tmp_path, "resume"):
        pass
    (tmp_path / "notes.txt").write_text("mine")
    with RunFolder(tmp_path, "overwrite"):
        assert not (tmp_path / "config.json").exists()
    assert (tmp_path / "notes.txt").exists()
    with pytest.raises(ValueError, match="holds no run to resume"):
        RunFolder(tmp_path, "resume")


def test_run_folder_refuses_a_second_run_at_the_same_time(tmp_path):
    with RunFolder(tmp_path), pytest.raises(ValueError, match="another run is writing"):
        RunFolder(tmp_path, "overwrite")


def test_run_folder_refuses_what_is_not_writable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="out: expected a folder to write to"):
        RunFolder(tmp_path / "file" / "run")


@pytest.mark.parametrize("field", ["data", "model", "time_steps", "neuron_arguments", "density"])
def test_run_folder_stored_config_takes_no_default_for_what_the_run_is(tmp_path, field):
    """A configuration without "data" is not one of CIFAR-10, which would be downloaded."""
    fields = tiny().to_dict()
    del fields[field], fields["checkpoint_minutes"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=rf"config\.json: .*\({field}: expected in the configuration of a run"):
        RunFolder.stored_config(tmp_path)
    fields[field] = tiny().to_dict()[field]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert RunFolder.stored_config(tmp_path) == tiny()


def test_run_folder_stored_config_names_a_damaged_file(tmp_path):
    (tmp_path / "config.json").write_text('{"density": 3}')
    with pytest.raises(ValueError, match=r"config\.json"):
        RunFolder.stored_config(tmp_path)


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
