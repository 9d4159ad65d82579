"""Archives of event cameras' recordings: unpacked once, whole, nowhere else, or refused by name."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from sca import data
from sca.data import FrameSettings
from tests.framework import event_files as files
from tests.framework.event_folders import (
    CLASSES,
    dvs_cifar10_files,
    frames_of,
    gesture_files,
    nmnist_files,
)


@pytest.fixture
def cache(tmp_path) -> dict[str, str]:
    return {"cache_dir": str(tmp_path / "cache")}


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
