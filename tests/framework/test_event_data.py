"""Data sets of event cameras: which files are found and how they are labelled, and what is wrong with a folder."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sca import data
from sca.data import FrameSettings, readers
from sca.data.splits import SPLITS
from tests.framework import event_files as files
from tests.framework.event_folders import (
    CLASSES,
    DIGITS,
    array_files,
    dvs_cifar10_files,
    frames_of,
    gesture_files,
    nmnist_files,
)


@pytest.fixture
def cache(tmp_path) -> dict[str, str]:
    return {"cache_dir": str(tmp_path / "cache")}


@pytest.mark.parametrize("place", ["", "NMNIST"])
def test_load_nmnist_takes_turns_of_classes(place, tmp_path, cache):
    root = nmnist_files(tmp_path / "data" / place)
    found = data.load("nmnist", tmp_path / "data", FrameSettings(**cache), 10)
    assert (len(found.train), len(found.test), found.num_classes) == (20, 10, 10)
    assert (found.in_channels, found.image_size, found.time_steps) == (2, (34, 34), 10)
    assert found.train.labels.tolist() == [*range(10), *range(10)]
    for place_, (number, digit) in enumerate(itertools.product(range(2), DIGITS)):
        expected = frames_of(root / "Train" / digit / f"{number:05d}.bin", (34, 34), (34, 34))
        assert np.array_equal(found.train.images[place_].numpy(), expected)
    assert found.told == "10 frames of equal numbers of events, sums, 34 x 34; official split"


@pytest.mark.parametrize("ending", [".aedat", ".mat"])
def test_load_dvs_cifar10_adds_events_up_in_larger_pixels(ending, tmp_path, cache):
    pytest.importorskip("scipy")
    root = dvs_cifar10_files(tmp_path / "data", ending)
    found = data.load("dvs_cifar10", root, FrameSettings(**cache), 4)
    assert (len(found.train), len(found.test), found.image_size) == (20, 20, (48, 48))
    assert (found.shift, found.mirror, found.classes) == (5, True, CLASSES)
    first = root / "airplane" / f"cifar10_airplane_0{ending}"
    assert np.array_equal(found.test.images[0].numpy(), frames_of(first, (128, 128), (48, 48), 4))
    assert found.test.images.sum() == 20 * 60
    assert "split tebn" in found.told


def test_load_dvs_cifar10_splits_nine_to_one_in_each_class():
    for split, of_class in SPLITS.items():
        for name in CLASSES:
            tests = of_class(name)
            assert len(tests) == 100
            assert tests <= set(range(1000)), split
    assert SPLITS["tebn"]("cat") == set(range(100))
    assert {999, 950, 910} <= SPLITS["last_tenth"]("cat")
    assert 99 in SPLITS["last_tenth"]("cat")
    assert 100 not in SPLITS["last_tenth"]("cat")
    assert SPLITS["random"]("cat") != SPLITS["random"]("dog")


def test_the_random_split_is_a_list_of_distinct_numbers():
    listed = json.loads(Path(data.splits.__file__).with_name("dvs_cifar10_random.json").read_text())
    assert sorted(listed) == sorted(CLASSES)
    for numbers in listed.values():
        assert len(numbers) == len({*numbers}) == 100
        assert all(type(number) is int and 0 <= number < 1000 for number in numbers)
        assert numbers != list(range(100))


@pytest.mark.parametrize("split", SPLITS)
def test_load_dvs_cifar10_takes_the_split_that_is_named(split, tmp_path, cache):
    root = dvs_cifar10_files(tmp_path / "data")
    for name in CLASSES:  # so that there is a test recording by each split
        number = min(SPLITS["random"](name))
        files.write_aedat2(root / name / f"cifar10_{name}_{number}.aedat", files.random_events(9, (128, 128)))
    found = data.load("dvs_cifar10", root, FrameSettings(**cache, event_split=split), 2)
    expected = sum(
        int(file.stem.rpartition("_")[2]) in SPLITS[split](file.parent.name) for file in root.glob("*/*.aedat")
    )
    assert len(found.test) == expected
    assert f"split {split}" in found.told


def test_load_dvs_gesture_cuts_each_gesture_by_its_own_row(tmp_path, cache):
    header = "class,startTime_usec,endTime_usec\n"
    overlapping = header + "11,1000,30000\n2,20000,40000\n2,40000,90000\n"
    root = gesture_files(tmp_path / "DvsGesture", {"user01_led": overlapping})
    found = data.load("dvs_gesture", tmp_path, FrameSettings(**cache), 3)
    assert (len(found.train), len(found.test), found.num_classes) == (3, 11, 11)
    assert found.train.labels.tolist() == [1, 10, 1]
    events = files.read_aedat3(root / "user01_led.aedat")
    counts = [sum(start <= t < end for t, *_ in events) for start, end in ((20_000, 40_000), (1000, 30_000))]
    assert found.train.images.sum((1, 2, 3, 4)).tolist()[:2] == counts


@pytest.mark.parametrize("ending", [".npy", ".npz", ".h5"])
def test_load_event_arrays_names_classes_by_folders(ending, tmp_path, cache):
    pytest.importorskip("h5py")
    root = array_files(tmp_path / "data", ending)
    found = data.load("event_arrays", root, FrameSettings(**cache, sensor=(24, 32)), 3)
    assert (found.classes, found.image_size) == (("left", "right"), (24, 32))
    assert found.train.labels.tolist() == [0, 1, 0, 1]
    assert np.array_equal(
        found.test.images[1].numpy(), frames_of(root / "test" / "right" / f"0{ending}", (24, 32), (24, 32), 3)
    )


def test_load_resamples_frames_where_that_is_wanted(tmp_path, cache):
    root = array_files(tmp_path / "data")
    settings = FrameSettings(**cache, sensor=(24, 32), frame_size=48, frame_resize="interpolate")
    found = data.load("event_arrays", root, settings, 3)
    assert (found.image_size, tuple(found.train.images.shape[2:4])) == ((48, 48), (24, 32))
    assert "interpolated from 24 x 32" in found.told
    frames, _ = next(found.test_batches(2))
    whole = found.test.images[:2].float().permute(1, 0, 4, 2, 3)
    expected = torch.nn.functional.interpolate(whole.flatten(0, 1), (48, 48), mode="bilinear").unflatten(0, (3, 2))
    assert torch.equal(frames, expected)


def no_test(root: Path) -> str:
    shutil.rmtree(root / "Test")
    return f"data_dir: {root} lacks Test"


def another_class(root: Path) -> str:
    (root / "Train" / "ten").mkdir()
    return f"{root}/Train: expected folders 0, 1, .*, got ten as well: no label for it"


def another_file(root: Path) -> str:
    (root / "Train" / "3" / "readme.txt").write_text("hello")
    return f"{root}/Train/3/readme.txt: expected recordings that end in .bin"


def another_camera(root: Path) -> str:
    files.write_atis(root / "Test" / "9" / "00000.bin", [(0, 100, 3, 1), (1, 200, 4, 1)])
    return f"{root}/Test/9/00000.bin, byte 0: expected x from 0 to 33, the sensor's, got 100"


def no_recording(root: Path) -> str:
    for file in root.glob("Test/*/*.bin"):
        file.unlink()
    return f"{root}: expected recordings for test, got none"


def empty_recording(root: Path) -> str:
    (root / "Train" / "5" / "00001.bin").write_bytes(b"")
    return f"{root}/Train/5/00001.bin: expected events, got none"


def nothing(root: Path) -> str:
    shutil.rmtree(root)
    root.mkdir()
    return f"data_dir: expected the folders Train and Test of N-MNIST, or Train.zip and Test.zip, in {root}"


def a_file(root: Path) -> str:
    shutil.rmtree(root)
    root.write_text("no folder")
    return "data_dir: .*Not a directory"


DAMAGES = [no_test, another_class, another_file, another_camera, no_recording, empty_recording, nothing, a_file]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_load_nmnist_names_what_is_wrong_and_keeps_nothing(damage, tmp_path, cache):
    root = nmnist_files(tmp_path / "data")
    message = damage(root)
    with pytest.raises(ValueError, match=message):
        data.load("nmnist", root, FrameSettings(**cache), 2)
    assert {file.name for file in Path(cache["cache_dir"]).glob("nmnist/*")} <= {".lock"}


NEEDS = {
    "nmnist": "the folders Train and Test of N-MNIST, or Train.zip and Test.zip",
    "dvs_cifar10": "a folder for each class of DVS-CIFAR10 .airplane, .*truck., or the archive of each",
    "dvs_gesture": "trials_to_train.txt and trials_to_test.txt of DVS128 Gesture, or DvsGesture.tar.gz",
    "event_arrays": "the folders train and test, each with a folder for each class",
}


@pytest.mark.parametrize("name", NEEDS)
def test_load_tells_what_it_expected_in_a_folder(name, tmp_path, cache):
    settings = FrameSettings(**cache, sensor=(24, 32) if name == "event_arrays" else None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=f"data_dir: expected {NEEDS[name]}.*{tmp_path}/empty"):
        data.load(name, tmp_path / "empty", settings)
    with pytest.raises(ValueError, match=f"data_dir: .*No such file or directory: '{tmp_path}/nowhere'"):
        data.load(name, tmp_path / "nowhere", settings)
    (tmp_path / "file").write_text("hello")
    with pytest.raises(ValueError, match=f"data_dir: .*Not a directory: '{tmp_path}/file'"):
        data.load(name, tmp_path / "file", settings)


@pytest.mark.skipif(os.geteuid() == 0, reason="an administrator reads every folder")
def test_load_names_a_folder_that_may_not_be_read(tmp_path, cache):
    root = nmnist_files(tmp_path / "data")
    for folder in (root / "Train" / "3", root):
        folder.chmod(0)
        try:
            with pytest.raises((ValueError, OSError), match=f"Permission denied: '{folder}'"):
                data.load("nmnist", root, FrameSettings(**cache), 2)
        finally:
            folder.chmod(0o755)


@pytest.mark.parametrize("steps", [0, -1, 2.5, "3", None, True], ids=repr)
def test_load_checks_the_number_of_frames_before_any_work(steps, tmp_path, cache):
    root = nmnist_files(tmp_path / "data")
    with pytest.raises((TypeError, ValueError), match="time_steps: expected"):
        data.load("nmnist", root, FrameSettings(**cache), steps)
    assert not Path(cache["cache_dir"]).exists()


def test_load_names_a_class_without_recordings(tmp_path, cache):
    """Nothing would say that one of ten digits is never shown."""
    root = nmnist_files(tmp_path / "data")
    shutil.rmtree(root / "Train" / "3")
    with pytest.raises(ValueError, match=f"{root}/Train.*3"):
        data.load("nmnist", root, FrameSettings(**cache), 2)


@pytest.mark.parametrize("name", ["Train", "Train/4"])
def test_load_names_a_file_where_a_folder_should_be(name, tmp_path, cache):
    root = nmnist_files(tmp_path / "data")
    shutil.rmtree(root / name)
    (root / name).write_text("hello")
    with pytest.raises((ValueError, OSError), match=f"{root}/Train"):
        data.load("nmnist", root, FrameSettings(**cache), 2)


def test_load_names_an_empty_class_and_a_recording_without_one(tmp_path, cache):
    root = array_files(tmp_path / "data")
    settings = FrameSettings(**cache, sensor=(24, 32))
    shutil.copy(root / "train" / "left" / "0.npz", root / "train" / "loose.npz")
    with pytest.raises(ValueError, match=r"train/loose.npz: expected recordings in a folder of their class"):
        data.load("event_arrays", root, settings)
    (root / "train" / "loose.npz").unlink()
    for file in (root / "test" / "left").iterdir():
        file.unlink()
    assert data.load("event_arrays", root, settings).test.labels.tolist() == [1, 1]
    for file in (root / "train" / "left").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"train/left: expected recordings that end in .npy, .* got none"):
        data.load("event_arrays", root, settings)


def test_load_notices_a_file_that_changes_between_two_looks(tmp_path, cache, monkeypatch):
    root = nmnist_files(tmp_path / "data")
    read, seen = readers.content_of, set()

    def changing(file: Path) -> bytes:
        content = read(file) + (bytes(5) if file in seen else b"")
        seen.add(file)
        return content

    monkeypatch.setattr(readers, "content_of", changing)
    with pytest.raises(ValueError, match=r"0000\d.bin: changed while recordings were read"):
        data.load("nmnist", root, FrameSettings(**cache), 2)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("rotate", float("nan")),
        ("rotate", 181),
        ("shear", -1),
        ("mix", 2),
        ("cutout", -1),
        ("flip", "up"),
        ("policy", "x"),
    ],
)
def test_train_batches_name_an_argument_that_is_out_of_range(argument, value):
    split = data.Split(torch.zeros(4, 2, 4, 4, 2, dtype=torch.uint8), torch.arange(4))
    recordings = data.Dataset("frames", split, split, 4, (0.0, 0.0), (1.0, 1.0), full_scale=1.0)
    with pytest.raises(ValueError, match=f"^{argument}: expected"):
        next(recordings.train_batches(2, seed=0, epoch=0, **{argument: value}))


def test_load_refuses_a_file_that_no_memory_holds(tmp_path, cache):
    root = nmnist_files(tmp_path / "data")
    os.truncate(root / "Train" / "4" / "00000.bin", readers.MOST_BYTES + 1)  # a hole, which takes no room
    with pytest.raises(OSError, match=r"larger than 2,147,483,648 bytes.*Train/4/00000.bin"):
        data.load("nmnist", root, FrameSettings(**cache), 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10_cat_1000.aedat", "expected a name that ends in a number from 0 to 999"),
        ("cifar10_cat.aedat", "expected a name that ends in a number from 0 to 999"),
        ("other_999.aedat", "expected each recording once, got number 999 as cifar10_cat_999.aedat too"),
        ("cifar10_cat_5.bin", "expected recordings that end in .aedat, .mat"),
    ],
)
def test_load_dvs_cifar10_names_a_file_that_is_none_of_its_own(name, message, tmp_path, cache):
    root = dvs_cifar10_files(tmp_path / "data")
    files.write_aedat2(root / "cat" / name, files.random_events(9, (128, 128)))
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        data.load("dvs_cifar10", root, FrameSettings(**cache), 2)


def test_load_dvs_cifar10_takes_files_of_both_formats_and_each_recording_once(tmp_path, cache):
    pytest.importorskip("scipy", reason="SciPy, which writes .mat files, is not installed")
    root = dvs_cifar10_files(tmp_path / "data")
    events = files.random_events(70, (128, 128))
    files.write_arrays(root / "cat" / "cifar10_cat_5.mat", events)
    found = data.load("dvs_cifar10", root, FrameSettings(**cache), 2)
    assert (len(found.train), len(found.test)) == (20, 21)
    assert found.test.images.sum((1, 2, 3, 4)).tolist().count(70) == 1
    files.write_arrays(root / "cat" / "cifar10_cat_99.mat", events)
    with pytest.raises(ValueError, match=r"cat_99.mat: expected each recording once, got number 99 as cifar10_cat_99"):
        data.load("dvs_cifar10", root, FrameSettings(**cache), 2)


def test_load_names_a_split_without_recordings(tmp_path, cache):
    root = dvs_cifar10_files(tmp_path / "data")
    for number in (0, 99):
        for file in root.glob(f"*/cifar10_*_{number}.aedat"):
            file.unlink()
    with pytest.raises(ValueError, match=rf"{root}: expected recordings for test, got none \(split tebn\)"):
        data.load("dvs_cifar10", root, FrameSettings(**cache), 2)
    gestures = gesture_files(tmp_path / "DvsGesture")
    (gestures / "trials_to_train.txt").write_text("\n")
    with pytest.raises(ValueError, match=rf"{gestures}: expected recordings for train, got none"):
        data.load("dvs_gesture", gestures, FrameSettings(**cache), 2)


@pytest.mark.parametrize("split", ["train", "test"])
def test_load_dvs_gesture_names_a_recording_that_is_listed_twice(split, tmp_path, cache):
    """A recording for training must not be one for the test."""
    root = gesture_files(tmp_path / "DvsGesture")
    with open(root / f"trials_to_{split}.txt", "a") as stream:
        stream.write("user01_led.aedat\n")
    with pytest.raises(ValueError, match=rf"{root}/trials_to_{split}.txt, line .*user01_led.aedat"):
        data.load("dvs_gesture", root, FrameSettings(**cache), 2)


HEAD = "class,startTime_usec,endTime_usec\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3\n", "line 1: expected class,startTime_usec,endTime_usec, got '1,2,3'"),
        (HEAD, "expected a label for each gesture, got none"),
        (HEAD + "1,5000,9000\n12,1,2\n", "line 3: expected a class from 1 to 11, and start < end, got 12,1,2"),
        (HEAD + "0,1,2\n", "line 2: expected a class from 1 to 11"),
        (HEAD + "1,9000,5000\n", "line 2: expected a class from 1 to 11, and start < end"),
        (HEAD + "1,x,5000\n", "line 2: expected three whole numbers"),
        (HEAD + "1,5000\n", "line 2: expected three whole numbers"),
        (HEAD + "1,5000,9000,1\n", "line 2: expected three whole numbers"),
        (HEAD + "\n1,5000,9000\n\n1,0.5,9000\n", "line 5: expected three whole numbers"),
        (HEAD + "1,5000,5000\n", "line 2: expected a class from 1 to 11, and start < end"),
        (HEAD + "1,-1,5000\n", "line 2: expected a class from 1 to 11, and start < end"),
        (HEAD + "1" * 200_000 + ",1,2\n", "expected"),
        (HEAD.replace("\n", "\r") + "1,5000\r", "expected"),
        ("", "line 1: expected class,startTime_usec,endTime_usec, got ''"),
    ],
    ids=lambda value: value[-20:],
)
def test_load_dvs_gesture_names_the_line_of_a_wrong_label(text, message, tmp_path, cache):
    root = gesture_files(tmp_path / "DvsGesture", {"user02_lab": text})
    with pytest.raises(ValueError, match=f"user02_lab_labels.csv.*{message}"):
        data.load("dvs_gesture", root, FrameSettings(**cache), 2)


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["\\n", "\\r\\n"])
def test_load_dvs_gesture_takes_the_event_at_the_start_and_not_the_one_at_the_end(end, tmp_path, cache):
    root = gesture_files(tmp_path / "DvsGesture")
    events = [(t, t // 100, 5, 1) for t in (1000, 1999, 2000, 2001, 2999, 3000, 3001, 4000)]
    files.write_aedat3(root / "user01_led.aedat", events)
    rows = (HEAD + "4,2000,3000\n9,2999,4001\n1,4000,4001\n").replace("\n", end)
    (root / "user01_led_labels.csv").write_bytes(rows.encode())
    found = data.load("dvs_gesture", root, FrameSettings(**cache), 1)
    assert found.train.labels.tolist() == [0, 3, 8]
    columns = [frames[0, 5, :, 1].nonzero().flatten().tolist() for frames in found.train.images]
    assert columns == [[40], [20, 29], [29, 30, 40]]
    assert found.train.images.sum((1, 2, 3, 4)).tolist() == [1, 3, 4]


def test_load_dvs_gesture_names_labels_and_recordings_that_are_missing(tmp_path, cache):
    root = gesture_files(tmp_path / "DvsGesture", {"user01_led": HEAD + "3,700000,800000\n"})
    with pytest.raises(ValueError, match=r"user01_led.aedat: expected events from 700,000 to 800,000 µs, got none"):
        data.load("dvs_gesture", root, FrameSettings(**cache), 2)
    (root / "user02_lab_labels.csv").unlink()
    with pytest.raises(ValueError, match=r"user02_lab_labels.csv: expected a readable text"):
        data.load("dvs_gesture", root, FrameSettings(**cache), 2)
    (root / "trials_to_test.txt").write_text("user02_lab.aedat\nuser03_led.aedat\n")
    gesture_files(root)
    (root / "trials_to_test.txt").write_text("user02_lab.aedat\n../user03_led.aedat\n")
    with pytest.raises(ValueError, match=r"trials_to_test.txt, line 2: expected a recording in"):
        data.load("dvs_gesture", root, FrameSettings(**cache), 2)


def test_load_event_arrays_names_what_it_needs(tmp_path, cache):
    root = array_files(tmp_path / "data")
    with pytest.raises(ValueError, match="sensor: expected the camera's height and width in pixels"):
        data.load("event_arrays", root, FrameSettings(**cache))
    with pytest.raises(ValueError, match=r"train/left/0.npz, event \d+: expected [xy] from 0 to 15, the sensor's"):
        data.load("event_arrays", root, FrameSettings(**cache, sensor=(16, 16)))
    with pytest.raises(ValueError, match="frame_size: expected at most the camera's 24 pixels, got 32"):
        data.load("event_arrays", root, FrameSettings(**cache, sensor=(24, 32), frame_size=32))
    (root / "test" / "up").mkdir()
    with pytest.raises(ValueError, match="test: expected folders of the classes in train, got up"):
        data.load("event_arrays", root, FrameSettings(**cache, sensor=(24, 32)))
