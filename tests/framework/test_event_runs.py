"""Whole runs on event cameras' recordings: real ones, and files that are written here in the official layouts."""

from __future__ import annotations

import json
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from sca import data
from sca.cli import app

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TINY = ("--width", "0.1", "--epochs", "1", "--batch-size", "8", "--time-steps", "3", "--frame-size", "16")


def sca(*arguments: object) -> str:
    """What a command prints."""
    outcome = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if outcome.exception is not None and not isinstance(outcome.exception, SystemExit):
        raise outcome.exception
    assert outcome.exit_code == 0, outcome.output
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", outcome.output).split())


def orbit(label: int, rng: np.random.Generator, start: int = 0) -> list[tuple[int, int, int, int]]:
    """Events of a spot on its way round the middle of a DVS128, at a distance of its class's: t, x, y, p."""
    times = np.sort(rng.integers(0, 100_000, 400))
    angle = 2 * np.pi * times / 100_000
    x, y = (np.clip(64 + 5 * (label + 1) * part(angle), 0, 127).astype(int) for part in (np.cos, np.sin))
    return list(zip((times + start).tolist(), x.tolist(), y.tolist(), rng.integers(0, 2, 400).tolist(), strict=True))


@pytest.fixture
def dvs_cifar10(tmp_path) -> Path:
    """Four recordings of each class, AEDAT 2.0, of which one is for the test."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (tmp_path / "recordings" / name).mkdir(parents=True)
        for number in (7, 100, 550, 999):
            with open(tmp_path / "recordings" / name / f"cifar10_{name}_{number}.aedat", "wb") as file:
                file.write(b"#!AER-DAT2.0\r\n# as written by a test\r\n")
                for t, x, y, p in orbit(label, rng):
                    file.write(struct.pack(">II", (127 - x) << 8 | (127 - y) << 1 | (1 - p), t))
    return tmp_path / "recordings"


@pytest.fixture
def dvs_gesture(tmp_path) -> Path:
    """Three recordings of all gestures, AEDAT 3.1, of which one is for the test."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "DvsGesture"
    folder.mkdir()
    for user in range(1, 4):
        events, rows = [], ["class,startTime_usec,endTime_usec"]
        for label in range(11):
            start = 1_000_000 + 150_000 * label
            rows.append(f"{label + 1},{start},{start + 100_000}")
            events += orbit(label, rng, start)
        (folder / f"user{user:02d}_led_labels.csv").write_text("\n".join(rows) + "\n")
        with open(folder / f"user{user:02d}_led.aedat", "wb") as file:
            file.write(b"#!AER-DAT3.1\r\n#Format: RAW\r\n#!END-HEADER\r\n")
            file.write(struct.pack("<HHIIIIII", 1, 1, 8, 4, 0, len(events), len(events), len(events)))
            for t, x, y, p in events:
                file.write(struct.pack("<II", x << 17 | y << 2 | p << 1 | 1, t))
    (folder / "trials_to_train.txt").write_text("user01_led.aedat\nuser02_led.aedat\n")
    (folder / "trials_to_test.txt").write_text("user03_led.aedat\n")
    return folder


def test_train_report_and_eval_on_dvs_cifar10(dvs_cifar10, tmp_path):
    run, cache = tmp_path / "run", ("--cache-dir", tmp_path / "cache")
    told = sca("train", "--data", "dvs_cifar10", "--data-dir", dvs_cifar10, *cache, *TINY, "--out", run)
    frames = "3 frames of equal numbers of events, sums, 16 x 16, integrated from 128 x 128; split tebn"
    assert f"accuracy on 10 test recordings ({frames})" in told
    assert "the first convolution at every time step, its input values, no spikes: MACs" in told
    config = json.loads((run / "config.json").read_text())
    assert (config["model"], config["frame_by"], config["density"]) == ("conv5fc1", "number", 0.3)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["dense"] is not None  # the preset trains the twin as well
    assert summary["cost"]["layers"][0]["presentations"] == 3
    sca("report", run)
    page = (run / "report.html").read_text()
    assert "A recording as frames" in page
    assert frames in page
    assert "measured now; as at the end of the run" in sca("eval", run)


def test_train_on_dvs_gesture_with_binary_frames_counts_the_first_layer_as_spikes(dvs_gesture, tmp_path):
    run = tmp_path / "run"
    how = ("--frame-by", "time", "--frame-values", "binary", "--reference", "none")
    told = sca(
        *("train", "--data", "dvs_gesture", "--data-dir", dvs_gesture.parent, "--cache-dir", tmp_path / "cache"),
        *(*TINY, *how, "--out", run),
    )
    frames = "3 frames of equal time, binary, 16 x 16, integrated from 128 x 128; official split"
    assert f"accuracy on 11 test recordings ({frames})" in told
    assert "the first convolution at every time step, its input spikes" in told
    first = json.loads((run / "summary.json").read_text())["cost"]["layers"][0]
    assert (first["spiking"], first["macs"], first["acs"] > 0) == (True, 0, True)


def test_train_with_mixed_labels_and_every_augmentation(dvs_cifar10, tmp_path):
    run = tmp_path / "run"
    changes = ("--mix", "0.7", "--rotate", "20", "--shear", "0.1", "--cutout", "4", "--loss", "mean")
    sca(
        *("train", "--data", "dvs_cifar10", "--data-dir", dvs_cifar10, "--cache-dir", tmp_path / "cache", *TINY),
        *(*changes, "--density", "1", "--out", run),
    )
    (row,) = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    assert 0 <= row["train_accuracy"] <= 1
    assert 0 < row["loss"] < 100


def test_table1_on_dvs_cifar10_stands_beside_published_figures(dvs_cifar10, tmp_path):
    told = sca(
        *(
            "bench",
            "table1",
            "--data",
            "dvs_cifar10",
            "--data-dir",
            dvs_cifar10,
            "--set",
            f"cache_dir={tmp_path / 'c'}",
        ),
        *("--set", "time_steps=3", "--set", "frame_size=16", "--width", "0.25", "--epochs", "1", "--seeds", "1"),
        *("--criteria", "sca", "--connectivities", "0.3", "--out", tmp_path / "table"),
    )
    assert "conv5fc1 x 0.25 on dvs_cifar10" in told
    assert "SPEAR (2025)" in told


def test_a_resumed_run_frames_nothing_and_keeps_its_recording(dvs_cifar10, tmp_path, monkeypatch):
    run, cache = tmp_path / "run", ("--cache-dir", tmp_path / "cache")
    sca("train", "--data", "dvs_cifar10", "--data-dir", dvs_cifar10, *cache, *TINY, "--reference", "none", "--out", run)
    kept = (run / "recording.json").read_bytes()
    monkeypatch.setattr(data.readers, "read", lambda *arguments, **named: pytest.fail("a recording is read again"))
    sca("train", "--out", run, "--resume", "--epochs", "2")
    assert (run / "recording.json").read_bytes() == kept


@pytest.fixture
def event_arrays(tmp_path) -> Path:
    """Eight recordings of each of three classes, of which two are for the test, with columns x, y, t, p."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("inner", "middle", "outer")):
        for number in range(8):
            folder = tmp_path / "own" / ("test" if number < 2 else "train") / name
            folder.mkdir(parents=True, exist_ok=True)
            t, x, y, p = np.array(orbit(4 * label, rng)).T
            np.save(folder / f"{number}.npy", np.stack([x, y, t, p], 1))
    return tmp_path / "own"


def test_train_on_recordings_of_ones_own(event_arrays, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    run, cache = tmp_path / "run", tmp_path / "cache"
    how = {"frame_by": "duration", "frame_duration": 30_000, "frame_values": "clipped", "frame_clip": 2}
    options = [word for name, value in how.items() for word in (f"--{name.replace('_', '-')}", value)]
    told = sca(
        *("train", "--data", "event_arrays", "--data-dir", event_arrays, "--sensor", "128,128", *options),
        *("--event-columns", "xytp", "--cache-dir", cache, *TINY, "--reference", "none", "--out", run),
    )
    frames = "3 frames of 30000 µs, sums up to 2, 16 x 16, integrated from 128 x 128; split by folder"
    assert f"accuracy on 6 test recordings ({frames})" in told
    config = json.loads((run / "config.json").read_text())
    expected = how | {"event_columns": "xytp", "sensor": [128, 128], "frame_size": 16, "time_steps": 3}
    assert {name: config[name] for name in expected} == expected
    assert [entry.parent.parent for entry in cache.rglob("frames.json")] == [cache / "event_arrays"]
    assert not (tmp_path / "users").exists()

    again = sca("train", "--out", run, "--resume", "--epochs", "2")
    assert "epoch 2/2" in again
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert len([*cache.rglob("frames.json")]) == 1
    outcome = CliRunner().invoke(app, ["train", "--out", str(run), "--resume", "--frame-values", "binary"])
    assert outcome.exit_code == 2
    assert "frame_values" in outcome.output


def test_a_run_names_a_damaged_recording_in_one_line(event_arrays, tmp_path):
    damaged = event_arrays / "train" / "middle" / "5.npy"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    outcome = CliRunner().invoke(
        app,
        [
            *("train", "--data", "event_arrays", "--data-dir", str(event_arrays), "--sensor", "128,128"),
            *("--event-columns", "xytp", "--cache-dir", str(tmp_path / "cache"), *TINY, "--out", str(tmp_path / "run")),
        ],
    )
    assert outcome.exit_code in (1, 2)
    assert isinstance(outcome.exception, SystemExit)
    assert "train/middle/5.npy" in "".join(outcome.output.split())
    assert not [*(tmp_path / "cache").rglob("frames.json")]
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "digits", "--frame-by", "time"), "frame_by: expected to be left out for digits"),
        (("--data", "digits", "--mix", "0.5"), "mix: expected 0 for digits"),
        (("--data", "nmnist", "--event-split", "random"), "event_split: expected to be left out for nmnist"),
        (("--data", "dvs_cifar10", "--sensor", "64,64"), "sensor: expected to be left out for dvs_cifar10"),
        (("--data", "event_arrays"), "data_dir: expected the folder with train/<class>"),
        (("--data", "nmnist", "--frame-by", "duration"), "frame_duration: expected a number of microseconds"),
        (("--data", "nmnist", "--frame-duration", "100"), "frame_duration: expected none"),
        (("--data", "dvs_gesture"), "fetch DvsGesture.tar.gz with a browser"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_settings_that_data_has_no_use_for_are_refused(arguments, message, tmp_path):
    outcome = CliRunner().invoke(app, ["train", *arguments, "--cache-dir", str(tmp_path), "--out", str(tmp_path / "r")])
    assert outcome.exit_code == 2
    assert message in " ".join(outcome.output.split())


@pytest.mark.skipif("SCA_KERNELS_NMNIST_DIR" not in os.environ, reason="SCA_KERNELS_NMNIST_DIR is not set")
def test_train_on_real_recordings_learns_within_four_epochs(tmp_path):
    """The preset takes thirty."""
    told = sca(
        *(
            "train",
            "--data",
            "nmnist",
            "--data-dir",
            os.environ["SCA_KERNELS_NMNIST_DIR"],
            "--cache-dir",
            tmp_path / "c",
        ),
        *("--width", "0.25", "--epochs", "4", "--density", "1", "--reference", "none", "--out", tmp_path / "run"),
    )
    assert "accuracy on 95 test recordings" in told
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["test_accuracy"] > 0.5


def test_time_growth_is_refused_for_recordings(event_arrays, tmp_path):
    outcome = CliRunner().invoke(
        app,
        [
            *("train", "--data", "event_arrays", "--data-dir", str(event_arrays), "--sensor", "128,128"),
            *("--event-columns", "xytp", "--cache-dir", str(tmp_path / "cache"), "--out", str(tmp_path / "run")),
            *("--time-steps", "4", "--time-growth", "0.5"),
        ],
    )
    assert outcome.exit_code == 2
    assert "time_growth: expected none for event_arrays, whose recordings" in " ".join(outcome.output.split())
