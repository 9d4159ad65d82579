"""A recording of a run's data: stored within bounds, refused by field where it is damaged, and drawn in the page."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sca.report.html import page
from sca.report.runs import MOST_FRAMES, read_runs
from sca.report.words import recording_words
from sca.training.recording import store_recording
from tests.framework.test_report_html import Page

CONFIG = {"model": "vgg9", "data": "nmnist", "epochs": 1, "time_steps": 10}


def counts(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).poisson(0.4, shape)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run that has not ended its first epoch."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


def stored(folder: Path, frames: np.ndarray, label: int = 3, name: str = "3", told: str = "frames of 50 ms"):
    store_recording(folder / "recording.json", frames, label, name, told)
    (run,) = read_runs([folder])
    return run


# --- what is stored --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, ">u4", np.int64])
def test_recording_is_read_as_it_was_stored(folder, dtype):
    frames = counts(10, 5, 7, 2).astype(dtype)
    told = stored(folder, frames, 3, "three", "10 frames of equal numbers of events").recording
    assert np.array_equal(told.frames, frames)
    assert (told.label, told.class_name, told.told) == (3, "three", "10 frames of equal numbers of events")
    assert told.steps == list(range(10))
    held = json.loads((folder / "recording.json").read_text())
    assert list(held) == ["label", "class", "told", "shape", "frames"]
    assert held["shape"] == [10, 5, 7, 2]


def test_recording_is_the_same_whatever_the_order_of_its_frames_in_memory(folder):
    frames = counts(3, 2, 5, 7).transpose(0, 2, 3, 1)
    assert np.array_equal(stored(folder, frames).recording.frames, frames)


def test_recording_of_large_counts_is_saturated(folder):
    frames = np.array([0, 254, 255, 256, 70_000, 2**40, 1, 0]).reshape(1, 2, 2, 2)
    assert stored(folder, frames).recording.frames.ravel().tolist() == [0, 254, 255, 255, 255, 255, 1, 0]


@pytest.mark.parametrize("total", [16, 17, 20, 31, 32, 1000])
def test_recording_of_many_frames_is_an_even_choice_of_them(folder, total):
    frames = counts(total, 3, 3, 2)
    told = stored(folder, frames).recording
    assert len(told.steps) == len(told.frames) == MOST_FRAMES
    assert (told.steps[0], told.steps[-1]) == (0, total - 1)
    gaps = np.diff(told.steps)
    assert gaps.max() - gaps.min() <= 1
    assert np.array_equal(told.frames, frames[told.steps])
    assert ("steps" in json.loads((folder / "recording.json").read_text())) == (total > MOST_FRAMES)


@pytest.mark.parametrize(
    ("frames", "error", "got"),
    [
        ([[1]], TypeError, "an array of integers, got list"),
        (np.zeros((1, 2, 2, 2), np.float32), TypeError, "an array of integers, got float32"),
        (np.zeros((1, 2, 2, 2), bool), TypeError, "an array of integers, got bool"),
        (np.zeros((2, 2, 2), int), ValueError, "[T, H, W, 2], H and W at most 512, got [2, 2, 2]"),
        (np.zeros((1, 2, 2, 3), int), ValueError, "[T, H, W, 2], H and W at most 512, got [1, 2, 2, 3]"),
        (np.zeros((1, 1, 2, 2, 2), int), ValueError, "[T, H, W, 2], H and W at most 512, got [1, 1, 2, 2, 2]"),
        (np.zeros((0, 2, 2, 2), int), ValueError, "[T, H, W, 2], H and W at most 512, got [0, 2, 2, 2]"),
        (np.zeros((1, 513, 2, 2), int), ValueError, "[T, H, W, 2], H and W at most 512, got [1, 513, 2, 2]"),
        (np.full((1, 2, 2, 2), -1), ValueError, "counts >= 0, got -1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_store_recording_refuses_other_arrays_and_writes_nothing(tmp_path, frames, error, got):
    with pytest.raises(error, match=re.escape(f"frames: expected {got}")):
        store_recording(tmp_path / "recording.json", frames, 0, "a", "b")
    assert not list(tmp_path.iterdir())


# --- what is read ----------------------------------------------------------------------------------------------------

GOOD = {"label": 1, "class": "one", "told": "frames", "shape": [2, 1, 3, 2], "frames": "AAAAAAAAAAAAAAAA"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"label": value}, "label: expected the number of a class, got") for value in (-1, 1.0, True, "1", None)),
        *(({name: 3}, f"{name}: expected a string, got 3") for name in ("class", "told", "frames")),
        *(
            ({"shape": value}, "shape: expected [T, H, W, 2], T from 1 to 16, H and W from 1 to 512, got")
            for value in (
                *(None, 12, "2132", {}, [], [2, 1, 3], [2, 1, 3, 2, 1], [2, 1, 2, 3], [0, 1, 3, 2], [17, 1, 3, 2]),
                *([2, 513, 3, 2], [2, 1, 513, 2], [2, -1, -3, 2], [2, 1, 3, True], [2.0, 1, 3, 2], [10**30] * 4),
            )
        ),
        ({"frames": "AAAA"}, "frames: expected 12 bytes, got 3"),
        ({"frames": ""}, "frames: expected 12 bytes, got 0"),
        ({"frames": "AAAAAAAAAAAAAAAAAAAA"}, "frames: expected 12 bytes, got 15"),
        ({"shape": [2, 2, 3, 2]}, "frames: expected 24 bytes, got 12"),
        *(
            ({"frames": text}, "frames: expected base64 (")
            for text in ("A", "AAAAAAAAAAAAAAA", "AAAAAAAA AAAAAAAA", "AAAAAAAA\nAAAAAAAA", "<b>AAAAAAAAAA", "\ud800")
        ),
        *(({"steps": value}, "steps: expected a list of 1 to 16 values, got") for value in (3, [], [0] * 17, None)),
        *(({"steps": value}, "steps: expected 2 numbers in rising order, got") for value in ([0], [1, 0], [1, 1])),
        ({"steps": [0, 0.5]}, "steps[1]: expected a number of things"),
        ({"steps": [-1, 0]}, "steps[0]: expected a number of things"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_a_damaged_recording_is_named_by_its_field(folder, changes, message):
    (folder / "recording.json").write_text(json.dumps({**GOOD, **changes}))
    with pytest.raises(ValueError, match=re.escape(f"{folder / 'recording.json'}: {message}")):
        read_runs([folder])


@pytest.mark.parametrize("field", GOOD)
def test_a_recording_lacks_no_field(folder, field):
    (folder / "recording.json").write_text(json.dumps({name: of for name, of in GOOD.items() if name != field}))
    with pytest.raises(ValueError, match=rf"recording\.json: {field}: expected .*, got nothing"):
        read_runs([folder])


# --- what is drawn ---------------------------------------------------------------------------------------------------


def pictures(content: str) -> dict[str, list[np.ndarray]]:
    """Role -> the opacities of the pictures that a page paints in its colour, uint8 [H, W] each."""
    found = {}
    for role, body in re.findall(r'<mask id="(\w+)-\w+">(.*?)</mask>', content):
        encoded = re.findall(r'href="data:image/png;base64,([^"]+)"', body)
        images = [Image.open(io.BytesIO(base64.b64decode(text))) for text in encoded]
        assert {image.mode for image in images} == {"LA"}
        found[role] = [np.asarray(image)[..., 1] for image in images]
        assert re.search(rf'<path [^>]*fill="var\(--{role}\)" mask="url\(#{role}-\w+\)"', content)
    return found


def test_page_of_a_run_with_a_recording(folder):
    frames = counts(10, 34, 34, 2)
    run = stored(folder, frames, told="10 frames of equal numbers of events, sums, 34 x 34")
    content = page([run])
    shown = Page(content)
    assert "A recording as frames" in shown.text
    assert recording_words(run) in shown.text.replace("&#39;", "'")
    assert "Class 3: 10 frames of equal numbers of events, sums, 34 x 34." in shown.text
    assert f"{frames.sum():,} events are shown; {frames.any(-1).mean():.1%} of the frames' pixels" in shown.text
    for words in (*(f"t = {step}" for step in range(10)), "ON", "OFF"):
        assert words in shown.text
    assert {role: len(images) for role, images in pictures(content).items()} == {"cut": 10, "kept": 10}
    assert "script" not in shown.tags
    assert not re.search(r"@import|https?://", content)


def test_page_of_a_run_without_a_recording(folder):
    (run,) = read_runs([folder])
    assert run.recording is None
    content = page([run])
    assert "A recording as frames" not in content
    assert "data:" not in content


def test_page_of_several_runs_keeps_their_recordings_apart(folder, tmp_path):
    paths = [folder, tmp_path / "second", tmp_path / "third"]
    for path in paths[1:]:
        path.mkdir()
        (path / "config.json").write_text(json.dumps(CONFIG))
    for path in paths[:2]:
        stored(path, counts(4, 6, 6, 2))
    shown = Page(page(read_runs(paths)))
    assert shown.text.count("A recording as frames") == 2
    assert len(set(shown.ids)) == len(shown.ids)


def test_pixels_are_as_strong_as_they_have_events_and_of_each_colour_its_share(folder):
    """10 events are as many as hardly a pixel has: there, what is behind is covered; 100 are no stronger."""
    frames = np.zeros((1, 10, 10, 2), np.uint8)
    frames[..., 1] = 10
    frames[0, 0, :6] = [[100, 0], [0, 100], [5, 0], [0, 5], [5, 5], [0, 0]]
    found = pictures(page([stored(folder, frames)]))
    assert found["cut"][0][0, :6].tolist() == [255, 0, 128, 0, 255, 0]
    assert found["kept"][0][0, :6].tolist() == [0, 255, 0, 128, 128, 0]  # ON over OFF: half of what is seen is of each
    assert set(found["kept"][0][1:].ravel()) == {255}


@pytest.mark.parametrize("shape", [(1, 1, 1, 2), (1, 34, 34, 2), (6, 180, 240, 2), (16, 512, 1, 2), (3, 1, 512, 2)])
@pytest.mark.parametrize("fill", [0, 1, 255])
def test_recordings_of_any_shape_lie_within_their_figure(folder, shape, fill):
    content = page([stored(folder, np.full(shape, fill))])
    width, height = map(float, re.search(r'<svg viewBox="0 0 (\S+) (\S+)"', content).groups())
    found = re.findall(r'<image x="(\S+)" y="(\S+)" width="(\S+)" height="(\S+)"', content)
    places = [tuple(map(float, place)) for place in found]
    assert len(places) == 2 * shape[0]
    assert places[: shape[0]] == places[shape[0] :]  # OFF and ON
    assert min(x for x, *_ in places) > 0
    assert max(x + wide for x, _, wide, _ in places) < width
    assert min(y for _, y, *_ in places) > 16
    assert max(y + high for _, y, _, high in places) < height - 30
    rows = Counter(y for _, y, *_ in places)
    assert len(rows) == math.ceil(shape[0] / 5)
    assert max(rows.values()) <= 2 * 5
