"""Data sets of event cameras: files found and labelled, frames kept once and whole, batches and what changes them."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sca import data
from sca.data import FrameSettings, archives, frame_cache, readers
from sca.data.augmentation import cut_out, mix_recordings, rotate_and_shear, shift_and_mirror
from sca.data.frames import integrate
from sca.data.splits import SPLITS
from tests.framework import event_files as files

DIGITS = tuple("0123456789")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NUMBERS = (0, 99, 100, 999)
SEED = itertools.count()


def nmnist_files(root: Path, count: int = 2) -> Path:
    """So many training recordings of each digit, and one for the test."""
    for split, digit, number in itertools.product(("Train", "Test"), DIGITS, range(count)):
        folder = root / split / digit
        folder.mkdir(parents=True, exist_ok=True)
        if split == "Train" or number == 0:
            files.write_atis(folder / f"{number:05d}.bin", files.random_events(60, (34, 34), seed=next(SEED)))
    return root


def dvs_cifar10_files(root: Path, ending: str = ".aedat") -> Path:
    for name, number in itertools.product(CLASSES, NUMBERS):
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        write = files.write_aedat2 if ending == ".aedat" else files.write_arrays
        write(folder / f"cifar10_{name}_{number}{ending}", files.random_events(60, (128, 128), seed=next(SEED)))
    return root


def gesture_files(root: Path, rows: dict[str, str] | None = None) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for user in ("user01_led", "user02_lab"):
        files.write_aedat3(root / f"{user}.aedat", files.random_events(2_000, (128, 128), seed=next(SEED)))
        lines = "".join(f"{label},{8_000 * label},{8_000 * label + 8_000}\n" for label in range(1, 12))
        text = "class,startTime_usec,endTime_usec\n" + lines
        (root / f"{user}_labels.csv").write_text((rows or {}).get(user, text))
    (root / "trials_to_train.txt").write_text("user01_led.aedat\n")
    (root / "trials_to_test.txt").write_text("user02_lab.aedat\n\n")
    return root


def array_files(root: Path, ending: str = ".npz") -> Path:
    for split, name, number in itertools.product(("train", "test"), ("left", "right"), range(2)):
        folder = root / split / name
        folder.mkdir(parents=True, exist_ok=True)
        files.write_arrays(folder / f"{number}{ending}", files.random_events(40, (24, 32), seed=next(SEED)))
    return root


@pytest.fixture
def cache(tmp_path) -> dict[str, str]:
    return {"cache_dir": str(tmp_path / "cache")}


def frames_of(file: Path, sensor: tuple[int, int], size: tuple[int, int], steps: int = 10) -> np.ndarray:
    return integrate(readers.read(file, sensor), FrameSettings(), steps, sensor, size)


# What is found, and where.


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


def zipped(folder: Path, archive: Path) -> None:
    with zipfile.ZipFile(archive, "w") as stream:
        for file in folder.rglob("*"):
            stream.write(file, file.relative_to(folder.parent))


def test_load_takes_archives_as_they_are_published(tmp_path, cache):
    (tmp_path / "zips").mkdir()
    root = nmnist_files(tmp_path / "data")
    for split in ("Train", "Test"):
        zipped(root / split, tmp_path / "zips" / f"{split}.zip")
    expected = data.load("nmnist", root, FrameSettings(**cache), 2)
    found = data.load("nmnist", tmp_path / "zips", FrameSettings(**cache), 2)
    assert torch.equal(found.train.images, expected.train.images)
    cifar = dvs_cifar10_files(tmp_path / "cifar")
    (tmp_path / "classes").mkdir()
    for name in CLASSES:
        zipped(cifar / name, tmp_path / "classes" / f"{name}.zip")
    found = data.load("dvs_cifar10", tmp_path / "classes", FrameSettings(**cache), 2)
    assert torch.equal(found.test.images, data.load("dvs_cifar10", cifar, FrameSettings(**cache), 2).test.images)
    gestures = gesture_files(tmp_path / "DvsGesture")
    (tmp_path / "tar").mkdir()
    with tarfile.open(tmp_path / "tar" / "DvsGesture.tar.gz", "w:gz") as tar:
        tar.add(gestures, arcname="DvsGesture")
    found = data.load("dvs_gesture", tmp_path / "tar", FrameSettings(**cache), 2)
    assert torch.equal(found.test.images, data.load("dvs_gesture", gestures, FrameSettings(**cache), 2).test.images)


@pytest.mark.parametrize("damage", ["cut", "no archive", "a member outside"])
def test_load_leaves_nothing_of_a_damaged_archive(damage, tmp_path, cache):
    gestures = gesture_files(tmp_path / "DvsGesture")
    (tmp_path / "tar").mkdir()
    archive = tmp_path / "tar" / "DvsGesture.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(gestures, arcname="../outside" if damage == "a member outside" else "DvsGesture")
    if damage != "a member outside":
        content = archive.read_bytes()
        archive.write_bytes(content[: len(content) // 2] if damage == "cut" else b"no archive")
    with pytest.raises(ValueError, match=r"DvsGesture.tar.gz: damaged, or no archive"):
        data.load("dvs_gesture", tmp_path / "tar", FrameSettings(**cache), 2)
    assert [*Path(cache["cache_dir"], "dvs_gesture").iterdir()] == []
    assert not (tmp_path / "outside").exists()


def tar_for_zip(archive: Path) -> None:
    with tarfile.open(archive, "w") as tar:
        tar.add(Path(__file__), arcname="Train/0/00000.bin")


def cut_to(length: int) -> Callable[[Path], None]:
    return lambda archive: archive.write_bytes(archive.read_bytes()[:length])


def changed_heads(place: int, central: int, value: int) -> Callable[[Path], None]:
    """A byte of the heads of all members of a .zip, at the place in the local ones, and in the central ones."""

    def change(archive: Path) -> None:
        content = bytearray(archive.read_bytes())
        for mark, offset in ((b"PK\x03\x04", place), (b"PK\x01\x02", central)):
            start = content.find(mark)
            while start >= 0:
                content[start + offset] = value
                start = content.find(mark, start + 4)
        archive.write_bytes(content)

    return change


def damaged_lzma(archive: Path) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_LZMA) as stream:
        stream.writestr("Train/0/00000.bin", bytes(range(250)))
    content = bytearray(archive.read_bytes())
    place = content.index(b".bin") + 20
    content[place : place + 20] = b"\xff" * 20
    archive.write_bytes(content)


def flipped(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[content.index(b".bin") + 20] ^= 0xFF
    archive.write_bytes(content)


BAD_ZIPS = {
    "empty": cut_to(0),
    "cut": cut_to(-1),
    "a changed byte": flipped,
    "a .tar": tar_for_zip,
    "encrypted": changed_heads(6, 8, 1),
    "of unknown compression": changed_heads(8, 10, 99),
    "damaged LZMA": damaged_lzma,
}


@pytest.mark.parametrize("damage", BAD_ZIPS)
def test_load_names_a_damaged_zip(damage, tmp_path, cache):
    root = nmnist_files(tmp_path / "data")
    (tmp_path / "zips").mkdir()
    for split in ("Train", "Test"):
        zipped(root / split, tmp_path / "zips" / f"{split}.zip")
    BAD_ZIPS[damage](tmp_path / "zips" / "Train.zip")
    with pytest.raises(ValueError, match=r"Train.zip: "):
        data.load("nmnist", tmp_path / "zips", FrameSettings(**cache), 2)
    assert [*Path(cache["cache_dir"], "nmnist").iterdir()] == []


@pytest.mark.parametrize("length", [0, 1, 5, 15, 100, 500, 5000])
def test_load_names_an_archive_of_which_the_end_is_missing(length, tmp_path, cache):
    gestures = gesture_files(tmp_path / "DvsGesture")
    (tmp_path / "tar").mkdir()
    archive = tmp_path / "tar" / "DvsGesture.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(gestures, arcname="DvsGesture")
    archive.write_bytes(archive.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"DvsGesture.tar.gz: damaged, or no archive"):
        data.load("dvs_gesture", tmp_path / "tar", FrameSettings(**cache), 2)
    assert [*Path(cache["cache_dir"], "dvs_gesture").iterdir()] == []


@pytest.mark.parametrize("place", ["an event", "the head of a member", "the checksum"])
def test_load_names_a_compressed_tar_whose_content_is_not_that_of_its_checksum(place, tmp_path, cache):
    """tarfile takes a damaged head for the archive's end, and reads no further, not to gzip's checksum either."""
    gestures = gesture_files(tmp_path / "DvsGesture")
    (tmp_path / "tar").mkdir()
    archive = tmp_path / "tar" / "DvsGesture.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=0) as tar:
        for file in sorted(gestures.iterdir()):
            tar.add(file, arcname=f"DvsGesture/{file.name}")
    content = bytearray(archive.read_bytes())
    first_event = content.index(files.AEDAT3_HEADER) + len(files.AEDAT3_HEADER) + 2 * 28 + 8 + 8
    last_head = content.index(b"DvsGesture/user02_lab_labels.csv")
    content[{"an event": first_event, "the head of a member": last_head + 150, "the checksum": -6}[place]] ^= 2
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"DvsGesture.tar.gz: damaged, or no archive"):
        data.load("dvs_gesture", tmp_path / "tar", FrameSettings(**cache), 2)
    assert [*Path(cache["cache_dir"], "dvs_gesture").iterdir()] == []


@pytest.mark.parametrize("kind", ["absolute", "link", "device"])
def test_load_refuses_a_tar_with_members_of_other_kinds(kind, tmp_path, cache):
    gestures = gesture_files(tmp_path / "DvsGesture")
    (tmp_path / "tar").mkdir()
    with tarfile.open(tmp_path / "tar" / "DvsGesture.tar.gz", "w:gz") as tar:
        tar.add(gestures, arcname="DvsGesture")
        member = tarfile.TarInfo(f"{tmp_path}/outside" if kind == "absolute" else "DvsGesture/outside")
        if kind == "link":
            member.type, member.linkname = tarfile.SYMTYPE, str(tmp_path)
        elif kind == "device":
            member.type = tarfile.CHRTYPE
        tar.addfile(member)
    if kind == "absolute":  # its leading slash is taken away
        assert len(data.load("dvs_gesture", tmp_path / "tar", FrameSettings(**cache), 2).test) == 11
    else:
        with pytest.raises(ValueError, match=r"DvsGesture.tar.gz: damaged, or no archive"):
            data.load("dvs_gesture", tmp_path / "tar", FrameSettings(**cache), 2)
    assert not (tmp_path / "outside").exists()


def test_load_unpacks_no_member_of_a_zip_elsewhere(tmp_path, cache):
    root = nmnist_files(tmp_path / "data")
    (tmp_path / "zips").mkdir()
    for split in ("Train", "Test"):
        zipped(root / split, tmp_path / "zips" / f"{split}.zip")
    with zipfile.ZipFile(tmp_path / "zips" / "Train.zip", "a") as stream:
        stream.writestr("../outside.bin", b"hello")
        stream.writestr("../../outside.bin", b"hello")
        stream.writestr(f"{tmp_path}/outside.bin", b"hello")
    assert len(data.load("nmnist", tmp_path / "zips", FrameSettings(**cache), 2).train) == 20
    assert not [*tmp_path.rglob("outside*")]


def test_load_unpacks_once_and_notices_another_archive(tmp_path, cache, monkeypatch):
    (tmp_path / "zips").mkdir()
    root = nmnist_files(tmp_path / "data")
    for split in ("Train", "Test"):
        zipped(root / split, tmp_path / "zips" / f"{split}.zip")
    first = data.load("nmnist", tmp_path / "zips", FrameSettings(**cache), 2)
    with monkeypatch.context() as patched:
        patched.setattr(zipfile.ZipFile, "extractall", lambda *given, **named: pytest.fail("unpacked again"))
        assert torch.equal(
            data.load("nmnist", tmp_path / "zips", FrameSettings(**cache), 2).train.images, first.train.images
        )
    files.write_atis(root / "Train" / "0" / "00000.bin", files.random_events(60, (34, 34), seed=12345))
    zipped(root / "Train", tmp_path / "zips" / "Train.zip")
    again = data.load("nmnist", tmp_path / "zips", FrameSettings(**cache), 2)
    expected = frames_of(root / "Train" / "0" / "00000.bin", (34, 34), (34, 34), 2)
    assert np.array_equal(again.train.images[0].numpy(), expected)


def test_load_names_the_archives_that_are_missing(tmp_path, cache):
    zipped(nmnist_files(tmp_path / "data") / "Train", tmp_path / "Train.zip")
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(ValueError, match=f"data_dir: {tmp_path} lacks Test.zip"):
        data.load("nmnist", tmp_path, FrameSettings(**cache), 2)


def test_load_downloads_by_checksum(tmp_path, cache, monkeypatch):
    pooch = pytest.importorskip("pooch")
    root = nmnist_files(tmp_path / "data")
    asked = []

    def retrieve(url: str, known_hash: str, path: Path, fname: str, **options: object) -> str:
        asked.append((fname, known_hash))
        path.mkdir(parents=True, exist_ok=True)
        zipped(root / fname.removesuffix(".zip"), path / fname)
        return str(path / fname)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    assert len(data.load("nmnist", None, FrameSettings(**cache), 2).train) == 20
    assert asked == [
        ("Train.zip", "md5:20959b8e626244a1b502305a9e6e2031"),
        ("Test.zip", "md5:69ca8762b2fe404d9b9bad1103e97832"),
    ]


# What is wrong.


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


# The cache.


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
        (lambda entry: cut_to(-1)(entry / "train.npy"), "train.npy: damaged"),
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


# Batches.


@pytest.fixture(params=[torch.uint8, torch.int16], ids=str)
def frames(request) -> data.Dataset:
    """Ten recordings of 4 frames; of each, all frames are the same."""
    generator = torch.Generator().manual_seed(0)
    one = torch.randint(3, (10, 1, 12, 9, 2), generator=generator).to(request.param)
    split = data.Split(one.repeat(1, 4, 1, 1, 1), torch.arange(10))
    return data.Dataset("frames", split, split, 10, (0.0, 0.0), (1.0, 1.0), full_scale=1.0, shift=3, mirror=True)


def test_batches_are_sequences_in_channels_last(frames):
    images, labels = next(frames.batches("test", 4))
    assert (images.shape, images.dtype, labels.tolist()) == ((4, 4, 2, 12, 9), torch.float32, [0, 1, 2, 3])
    assert images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, frames.test.images[:4].float().permute(1, 0, 4, 2, 3))


EVERYTHING = {"flip": "random", "cutout": 4, "rotate": 30.0, "shear": 0.2, "mix": 0.5}


def test_train_batches_of_sequences_depend_on_seed_epoch_and_position_alone(frames):
    def draw(**arguments: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(frames.train_batches(4, **arguments, **EVERYTHING))

    whole, again, later = draw(seed=3, epoch=1), draw(seed=3, epoch=1), draw(seed=3, epoch=1, start=1)
    for (images, labels), (same_images, same_labels) in zip(whole, again, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
    assert torch.equal(whole[1][0], later[0][0])
    assert not torch.equal(whole[0][0], draw(seed=4, epoch=1)[0][0])


@pytest.mark.parametrize("name", ["roll and mirror", "cutout", "rotate", "shear"])
def test_all_frames_of_a_recording_are_changed_alike(frames, name):
    plain = {"flip": "random", "cutout": 0}
    changes = {"roll and mirror": {}, "cutout": {"cutout": 5}, "rotate": {"rotate": 45.0}, "shear": {"shear": 0.5}}[
        name
    ]
    changed = torch.cat([images for images, _ in frames.train_batches(4, seed=0, epoch=0, **(plain | changes))], 1)
    order = [label for _, labels in frames.train_batches(4, seed=0, epoch=0, **plain) for label in labels.tolist()]
    original = frames.train.images[order].float().permute(1, 0, 4, 2, 3)
    assert all(torch.equal(changed[0], step) for step in changed)
    assert not torch.equal(changed, original)
    if name == "roll and mirror":
        assert torch.equal(changed.sum((0, 2, 3, 4)), original.sum((0, 2, 3, 4)))


@pytest.mark.parametrize("flip", ["random", "alternating"])
def test_batches_of_resampled_frames_go_on_in_the_middle_of_an_epoch(frames, flip):
    resampled = dataclasses.replace(frames, size=(16, 20))

    def draw(**arguments: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(resampled.train_batches(3, seed=7, epoch=2, **arguments, **(EVERYTHING | {"flip": flip})))

    whole, later = draw(), draw(start=2)
    assert [tuple(images.shape) for images, _ in whole] == [(4, 3, 2, 16, 20)] * 3 + [(4, 1, 2, 16, 20)]
    assert len(later) == 2
    for (images, labels), (same_images, same_labels) in zip(whole[2:], later, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
    for images, labels in whole:
        assert (images.dtype, labels.dtype) == (torch.float32, torch.float32)
        assert images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(labels.sum(1), torch.ones(len(labels)))


def test_batches_leave_the_frames_alone(frames):
    held = frames.train.images.clone()
    for _ in frames.train_batches(4, seed=0, epoch=0, **EVERYTHING):
        pass
    assert torch.equal(frames.train.images, held)


def test_batches_hold_counts_that_fill_their_type():
    """Nothing is added in 16 bits."""
    images = torch.full((4, 3, 6, 5, 2), 32_767, dtype=torch.int16)
    split = data.Split(images, torch.arange(4))
    counts = data.Dataset("counts", split, split, 4, (0.0, 0.0), (1.0, 1.0), full_scale=1.0, shift=2, mirror=True)
    for batch, labels in counts.train_batches(4, seed=0, epoch=0, mix=1.0):
        assert (batch == 32_767).all()
        assert ((labels >= 0) & (labels <= 1)).all()
        assert torch.allclose(labels.sum(1), torch.ones(4))


def test_a_mirrored_recording_is_the_mirror_image_in_all_frames(frames):
    still = dataclasses.replace(frames, shift=0)
    (images, labels), *_ = still.train_batches(10, seed=0, epoch=0)
    original = frames.train.images[labels].float().permute(1, 0, 4, 2, 3)
    mirrored = [torch.equal(images[:, n], original[:, n].flip(-1)) for n in range(10)]
    same = [torch.equal(images[:, n], original[:, n]) for n in range(10)]
    assert all(one != other for one, other in zip(mirrored, same, strict=True))
    assert 0 < sum(mirrored) < 10


def test_rolling_moves_events_to_the_other_side():
    frames = torch.zeros(64, 2, 6, 5, 2, dtype=torch.uint8)
    frames[:, :, 0, 0, 1] = 1
    moved = shift_and_mirror(frames, 2, torch.zeros(64, dtype=torch.bool), torch.Generator().manual_seed(0), rolls=True)
    assert torch.equal(moved.sum((1, 2, 3, 4)), torch.full((64,), 2))
    rows, columns = (set(moved[:, 0, :, :, 1].nonzero()[:, axis].tolist()) for axis in (1, 2))
    assert rows == {0, 1, 2, 4, 5}
    assert columns == {0, 1, 2, 3, 4}


def test_rotate_and_shear_move_pixels_about_the_centre():
    image = torch.arange(1, 26).view(1, 5, 5, 1)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(rotate_and_shear(image, 0.0, 0.0, generator), image)
    turned = rotate_and_shear(image.repeat(200, 1, 1, 1), 180.0, 0.0, generator)
    assert (turned[:, 2, 2, 0] == 13).all()
    quarter = {tuple(torch.rot90(image[0, :, :, 0], k).flatten().tolist()) for k in range(4)}
    assert len(quarter & {tuple(one.flatten().tolist()) for one in turned}) >= 3
    sheared = rotate_and_shear(image.repeat(50, 1, 1, 1), 0.0, 1.0, generator)
    assert (sheared[:, 2, :, 0] == image[0, 2, :, 0]).all()
    assert {*sheared.unique().tolist()} == {0, *range(1, 26)}


def test_cut_out_takes_the_same_square_of_all_frames():
    frames = torch.ones(3, 8, 2, 9, 7)
    cut = cut_out(frames.clone(), 3, torch.Generator().manual_seed(0))
    assert all(torch.equal(cut[0], step) for step in cut)
    zeros = (cut[0, :, 0] == 0).sum((1, 2))
    assert (zeros > 0).all()
    assert (zeros <= 9).all()


def test_mixed_labels_are_shares_of_events(frames):
    images, labels = frames.train.images, frames.train.labels
    # of each recording, events of its own number, so that those of a mixture can be told apart
    own = (labels + 1).view(-1, 1, 1, 1, 1).to(images.dtype) * (images > 0)
    mixed, probabilities = mix_recordings(own, labels, 10, 1.0, torch.Generator().manual_seed(1))
    assert torch.allclose(probabilities.sum(1), torch.ones(10))
    assert mixed.dtype == own.dtype
    for recording, row in zip(mixed, probabilities, strict=True):
        total = recording.sum().item()
        shares = {
            int(value) - 1: recording[recording == value].sum().item() / total for value in recording.unique()[1:]
        }
        expected = torch.zeros(10)
        for label, share in shares.items():
            expected[label] = share
        assert torch.allclose(row, expected, atol=1e-6)
    assert (probabilities.max(1).values < 1).any()


def test_mixing_nothing_changes_nothing(frames):
    images, labels = frames.train.images, frames.train.labels
    unmixed, probabilities = mix_recordings(images, labels, 10, 0.0, torch.Generator().manual_seed(1))
    assert torch.equal(unmixed, images)
    assert torch.equal(probabilities, torch.eye(10))
    alone, probabilities = mix_recordings(images[:1], labels[:1], 10, 1.0, torch.Generator().manual_seed(1))
    assert torch.equal(alone, images[:1])
    assert torch.equal(probabilities, torch.eye(10)[:1])
    empty, probabilities = mix_recordings(torch.zeros_like(images), labels, 10, 1.0, torch.Generator().manual_seed(1))
    assert torch.equal(probabilities, torch.eye(10))
    assert not empty.any()
