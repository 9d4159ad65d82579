"""sca.training: checkpoints and a run's folder: whole, exclusive, and refused by name where they are not good."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import sca
from sca import checkpoint, training
from sca.files import write_whole
from sca.training import RunFolder
from sca.training.recording import store_recording
from tests.framework.watched import Watch, assert_equal_state, tiny, trainer_of

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


def test_run_folder_keeps_the_recording_of_a_run_that_goes_on_and_removes_that_of_another(tmp_path):
    with RunFolder(tmp_path) as folder:
        folder.write_config(tiny())
        store_recording(folder.recording, np.ones((1, 2, 2, 2), np.int64), 0, "zero", "one frame")
    with RunFolder(tmp_path, "resume") as folder:
        folder.forget_results()
        assert folder.recording.exists()
    with pytest.raises(ValueError, match=r"already holds a run \(config\.json, recording\.json\)"):
        RunFolder(tmp_path)
    with RunFolder(tmp_path, "overwrite") as folder:
        assert not folder.recording.exists()


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
