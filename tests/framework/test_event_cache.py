"""Frames of recordings are kept once and whole: found again, told apart, and refused where they are damaged."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from sca import data
from sca.data import FrameSettings, archives, frame_cache, readers
from tests.framework import event_files as files
from tests.framework.event_folders import (
    dvs_cifar10_files,
    frames_of,
    nmnist_files,
)


@pytest.fixture
def cache(tmp_path) -> dict[str, str]:
    return {"cache_dir": str(tmp_path / "cache")}


def test_load_reads_recordings_once(tmp_path, cache, monkeypatch):
    root = nmnist_files(tmp_path / "data")
    read, asked = readers.read, []
    monkeypatch.setattr(readers, "read", lambda file, *rest, **named: asked.append(file) or read(file, *rest, **named))
    first = data.load("nmnist", root, FrameSettings(**cache), 2)
    assert set(asked) == set(root.glob("*/*/*.bin"))
    asked.clear()
    again = data.load("nmnist", root, FrameSettings(**cache), 2)
    assert asked == []
    assert torch.equal(first.train.images, again.train.images)
    again.train.images.zero_()  # what is done to the tensor is not done to the file
    assert torch.equal(first.train.images, data.load("nmnist", root, FrameSettings(**cache), 2).train.images)
    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    data.load("nmnist", moved, FrameSettings(**cache), 2)  # the same content elsewhere
    assert asked == []


def test_load_notices_another_content_of_the_same_size(tmp_path, cache):
    root = nmnist_files(tmp_path / "data")
    first = data.load("nmnist", root, FrameSettings(**cache), 2)
    file = root / "Train" / "0" / "00000.bin"
    stat = file.stat()
    files.write_atis(file, files.random_events(60, (34, 34), seed=12345))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert file.stat().st_size == stat.st_size
    again = data.load("nmnist", root, FrameSettings(**cache), 2)
    assert np.array_equal(again.train.images[0].numpy(), frames_of(file, (34, 34), (34, 34), 2))
    assert torch.equal(again.train.images[1:], first.train.images[1:])


def test_load_keeps_frames_of_other_parameters_apart(tmp_path, cache):
    root = dvs_cifar10_files(tmp_path / "data")
    kinds = [{}, {"frame_values": "binary"}, {"frame_size": 32}, {"event_split": "last_tenth"}, {"frame_by": "time"}]
    for kind in kinds:
        data.load("dvs_cifar10", root, FrameSettings(**cache, **kind), 2)
    data.load("dvs_cifar10", root, FrameSettings(**cache), 3)
    assert len([*Path(cache["cache_dir"]).glob("dvs_cifar10/*/frames.json")]) == len(kinds) + 1


def kept_entry(cache: dict[str, str]) -> Path:
    (entry,) = Path(cache["cache_dir"]).glob("nmnist/*/frames.json")
    return entry.parent


def save_npz(file: Path) -> None:
    with open(file, "wb") as stream:
        np.savez(stream, frames=np.zeros(3))


def replaced(file: Path, old: bytes, new: bytes) -> None:
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new, 1))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda entry: (entry / "frames.json").unlink(), "frames.json: expected what the frames beside it are"),
        (lambda entry: (entry / "frames.json").write_text("{"), "frames.json: expected what the frames beside it are"),
        (lambda entry: (entry / "frames.json").write_text("[]"), "frames.json: expected frames of these parameters"),
        (lambda entry: (entry / "train.npy").unlink(), "train.npy: damaged"),
        (lambda entry: os.truncate(entry / "train.npy", 500), "train.npy: damaged"),
        (lambda entry: (entry / "test.npy").write_bytes(b"hello"), "test.npy: damaged"),
        (lambda entry: os.truncate(entry / "test.npy", 10**6), "test.npy: expected [0-9,]+ bytes, got 1,000,000"),
        (
            lambda entry: np.save(entry / "test.npy", np.zeros((10, 3, 34, 34, 2), np.uint8)),
            "test.npy: expected frames",
        ),
        (lambda entry: np.save(entry / "test.npy", np.zeros((10, 2, 34, 34, 2))), "test.npy: expected frames"),
        (lambda entry: (entry / "frames.json").write_bytes(b"\xff"), "frames.json: expected what the frames beside"),
        (lambda entry: (entry / "frames.json").write_text("[" * 100_000), "frames.json: expected what the frames"),
        (lambda entry: (entry / "train.npy").write_bytes(b""), "train.npy: damaged"),
        (
            lambda entry: os.truncate(entry / "train.npy", (entry / "train.npy").stat().st_size - 1),
            "train.npy: damaged",
        ),
        (lambda entry: save_npz(entry / "train.npy"), "train.npy: (damaged|expected frames)"),
        (lambda entry: np.save(entry / "train.npy", np.array([None]), allow_pickle=True), "train.npy: damaged"),
        (lambda entry: replaced(entry / "train.npy", b"'shape'", b"'shape)"), "train.npy: damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_load_names_what_is_damaged_in_the_cache(spoil, message, tmp_path, cache):
    root = nmnist_files(tmp_path / "data")
    data.load("nmnist", root, FrameSettings(**cache), 2)
    entry = kept_entry(cache)
    spoil(entry)
    with pytest.raises(ValueError, match=rf"{entry}/{message}.*remove {entry}, and it is made anew"):
        data.load("nmnist", root, FrameSettings(**cache), 2)
    shutil.rmtree(entry)
    assert len(data.load("nmnist", root, FrameSettings(**cache), 2).train) == 20


@pytest.mark.parametrize("content", [b"", b"[", b"[]", b"[" * 100_000, b'{"Train/0/00000.bin": [1, 2, {}]}', b"\xff"])
def test_load_needs_no_digests(content, tmp_path, cache):
    """They are made anew where they are damaged."""
    root = nmnist_files(tmp_path / "data")
    first = data.load("nmnist", root, FrameSettings(**cache), 2)
    (kept,) = Path(cache["cache_dir"]).glob("nmnist/digests-*.json")
    kept.write_bytes(content)
    assert torch.equal(data.load("nmnist", root, FrameSettings(**cache), 2).train.images, first.train.images)
    assert kept_entry(cache)
    assert kept.stat().st_size > 1000


def test_load_refuses_frames_that_were_made_by_other_parameters(tmp_path, cache):
    root = nmnist_files(tmp_path / "data")
    data.load("nmnist", root, FrameSettings(**cache), 2)
    entry = kept_entry(cache)
    told = json.loads((entry / "frames.json").read_text())
    (entry / "frames.json").write_text(json.dumps({**told, "frame_values": "binary"}))
    with pytest.raises(ValueError, match=r"expected frames of these parameters, got others \(frame_values\)"):
        data.load("nmnist", root, FrameSettings(**cache), 2)


def full_disk(*arguments: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted(*arguments: object) -> int:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("fails", "error"),
    [(full_disk, "No space left on device.*nmnist"), (interrupted, None)],
    ids=["full", "interrupted"],
)
def test_load_leaves_nothing_half_written(fails, error, tmp_path, cache, monkeypatch):
    root = nmnist_files(tmp_path / "data")
    written = itertools.count()
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda *given: write(*given) if next(written) < 7 else fails(*given))
    with pytest.raises((OSError, KeyboardInterrupt), match=error):
        data.load("nmnist", root, FrameSettings(**cache), 2)
    assert [file.name for file in Path(cache["cache_dir"], "nmnist").iterdir()] == [".lock"]
    monkeypatch.setattr(os, "pwrite", write)
    assert len(data.load("nmnist", root, FrameSettings(**cache), 2).train) == 20


@pytest.mark.parametrize("large", [0, 2**40], ids=["threads", "one thread"])
@pytest.mark.parametrize("error", [ValueError("damaged"), KeyboardInterrupt(), MemoryError()], ids=repr)
def test_load_leaves_nothing_where_a_recording_fails(error, large, tmp_path, cache, monkeypatch):
    root = nmnist_files(tmp_path / "data", 4)
    monkeypatch.setattr(frame_cache, "_LARGE", large)
    monkeypatch.setattr(frame_cache, "_SAMPLED", 1)
    read = readers.read

    def failing(file: Path, *rest: object, **named: object) -> readers.Events:
        if file.parent.name == "7":
            raise error
        return read(file, *rest, **named)

    running = threading.active_count()
    with monkeypatch.context() as patched:
        patched.setattr(readers, "read", failing)
        with pytest.raises(type(error)):
            data.load("nmnist", root, FrameSettings(**cache), 2)
    assert {file.name for file in Path(cache["cache_dir"], "nmnist").iterdir()} <= {".lock"}
    assert threading.active_count() == running
    assert not any(target.startswith(str(tmp_path)) for target in open_files())
    assert len(data.load("nmnist", root, FrameSettings(**cache), 2).train) == 40


def open_files() -> set[str]:
    """What this process has open; nothing where the system doesn't tell."""
    listed = Path("/proc/self/fd")
    return {os.path.realpath(entry) for entry in listed.iterdir()} if listed.is_dir() else set()


@pytest.mark.parametrize("name", ["write_json", "fsync"])
def test_load_leaves_nothing_where_the_disk_is_full_at_last(name, tmp_path, cache, monkeypatch):
    root = nmnist_files(tmp_path / "data")
    with monkeypatch.context() as patched:
        patched.setattr(*((frame_cache, name) if name == "write_json" else (os, name)), full_disk)
        with pytest.raises(OSError, match="No space left on device"):
            data.load("nmnist", root, FrameSettings(**cache), 2)
    assert {file.name for file in Path(cache["cache_dir"], "nmnist").iterdir()} <= {".lock"}
    assert len(data.load("nmnist", root, FrameSettings(**cache), 2).train) == 20


def test_load_by_two_processes_at_once_frames_once(tmp_path, cache):
    root = nmnist_files(tmp_path / "data", 5)
    code = (
        "import sys; from sca import data\n"
        "print(data.load('nmnist', sys.argv[1], data.FrameSettings(cache_dir=sys.argv[2]), 2).digest)"
    )
    command = [sys.executable, "-c", code, str(root), cache["cache_dir"]]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert len({out for out, _ in told}) == 1
    assert kept_entry(cache)
    assert not [*Path(cache["cache_dir"]).glob("nmnist/.partial*")]


@pytest.mark.parametrize("place", ["", "nmnist"])
def test_load_names_a_cache_that_is_no_folder(place, tmp_path, cache):
    folder = Path(cache["cache_dir"], place)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("hello")
    with pytest.raises(OSError, match=f"{folder}"):
        data.load("nmnist", nmnist_files(tmp_path / "data"), FrameSettings(**cache), 2)


@pytest.mark.parametrize("process", ["99999999999999999999", "-5", "x", ""])
def test_load_clears_what_no_process_has_named(process, tmp_path, cache):
    left = Path(cache["cache_dir"], "nmnist", f".partial-{process}-abc")
    left.mkdir(parents=True)
    assert len(data.load("nmnist", nmnist_files(tmp_path / "data"), FrameSettings(**cache), 2).train) == 20
    assert not left.exists()


def test_load_clears_what_a_killed_process_left(tmp_path, cache):
    left = Path(cache["cache_dir"], "nmnist", ".partial-99999999-abc")
    left.mkdir(parents=True)
    (left / "train.npy").write_bytes(b"half")
    running = left.with_name(f".partial-{os.getppid()}-abc")
    running.mkdir()
    data.load("nmnist", nmnist_files(tmp_path / "data"), FrameSettings(**cache), 2)
    assert (left.exists(), running.exists()) == (False, True)


@pytest.mark.parametrize(("count", "kind"), [(255, np.uint8), (256, np.int16), (32_768, np.int32)])
@pytest.mark.parametrize("place", [0, 7])
def test_load_keeps_every_count(count, kind, place, tmp_path, cache, monkeypatch):
    """Also where the recording that tells is none of those that are looked at in advance."""
    monkeypatch.setattr(frame_cache, "_SAMPLED", 1)
    root = nmnist_files(tmp_path / "data")
    files.write_atis(root / "Train" / str(place) / "00000.bin", [(5, 1, 2, 1)] * count)
    found = data.load("nmnist", root, FrameSettings(**cache), 1)
    assert found.train.images[place, 0, 2, 1].tolist() == [0, count]
    assert found.train.images.numpy().dtype == kind
    images, _ = next(found.test_batches(4))
    assert images.dtype == torch.float32


def test_load_by_several_at_once_frames_once(tmp_path, cache, monkeypatch):
    root, found, asked = nmnist_files(tmp_path / "data", 5), [], []
    read = readers.read
    monkeypatch.setattr(frame_cache, "_SAMPLED", 1)
    monkeypatch.setattr(readers, "read", lambda file, *rest, **named: asked.append(file) or read(file, *rest, **named))

    def load() -> None:
        found.append(data.load("nmnist", root, FrameSettings(**cache), 2).train.images)

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(asked) == 1 + 60
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_large_files_are_shared_by_threads(tmp_path, cache, monkeypatch):
    root = nmnist_files(tmp_path / "data")
    alone = data.load("nmnist", root, FrameSettings(**cache), 2)
    names = set()
    read = readers.read
    monkeypatch.setattr(frame_cache, "_LARGE", 0)
    monkeypatch.setattr(
        readers, "read", lambda *rest, **named: names.add(threading.current_thread().name) or read(*rest, **named)
    )
    shared = data.load("nmnist", root, FrameSettings(cache_dir=str(tmp_path / "other")), 2)
    assert any(name.startswith("ThreadPool") for name in names)
    assert torch.equal(alone.train.images, shared.train.images)


def test_made_whole_takes_what_another_process_has_made(tmp_path):
    def make(place: Path) -> str:
        (place / "own").write_text("late")
        (tmp_path / "entry").mkdir()
        (tmp_path / "entry" / "file").write_text("first")
        return "entry"

    assert (archives.made_whole(tmp_path, make) / "file").read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["entry"]
