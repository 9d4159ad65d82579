"""sca.data: the embedded digits, CIFAR's binary layout, batches drawn by seed and position, and bad input."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.server
import math
import os
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from sca import data
from sca.data import cifar
from sca.data.augmentation import cut_out, shift_and_mirror


def write_cifar(folder: Path, layout: cifar.Layout, records_per_file: int = 7) -> dict[str, np.ndarray]:
    """Random records in the official layout; returns what each file holds."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    written = {}
    for name in (*layout.train_files, layout.test_file):
        records = rng.integers(0, 256, (records_per_file, layout.label_bytes + 3072), dtype=np.uint8)
        records[:, : layout.label_bytes] %= layout.num_classes
        records.tofile(folder / name)
        written[name] = records
    return written


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits")


def test_load_digits_is_a_fixed_stratified_split(digits):
    assert (len(digits.train), len(digits.test)) == (1433, 364)
    assert (digits.in_channels, digits.image_size, digits.num_classes) == (1, (8, 8), 10)
    share = digits.test.labels.bincount() / (digits.test.labels.bincount() + digits.train.labels.bincount())
    assert ((share > 0.19) & (share < 0.21)).all()
    again = data.load("digits")
    assert torch.equal(again.train.images, digits.train.images)


def test_load_digits_splits_share_no_image(digits):
    train = {image.numpy().tobytes() for image in digits.train.images}
    assert not any(image.numpy().tobytes() in train for image in digits.test.images)


def test_train_batches_are_normalised_channels_last_and_complete(digits):
    batches = list(digits.train_batches(100, seed=0, epoch=0, augment=False))
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert images.shape == (1433, 1, 8, 8)
    assert images.dtype == torch.float32
    assert all(batch.is_contiguous(memory_format=torch.channels_last) for batch, _ in batches)
    assert abs(images.mean()) < 0.02
    assert abs(images.std() - 1) < 0.02
    assert torch.equal(labels.bincount(), digits.train.labels.bincount())


def test_train_batches_depend_on_seed_epoch_and_position_alone(digits):
    def draw(**arguments):
        return list(digits.train_batches(64, **arguments))

    whole, again, later = draw(seed=3, epoch=1), draw(seed=3, epoch=1), draw(seed=3, epoch=1, start=5)
    for (images, labels), (same_images, same_labels) in zip(whole, again, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
    assert len(later) == len(whole) - 5
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(whole[5:], later, strict=True))
    for other in (draw(seed=4, epoch=1), draw(seed=3, epoch=2)):
        assert not torch.equal(whole[0][1], other[0][1])


def test_test_batches_keep_the_order_and_are_never_augmented(digits):
    labels = torch.cat([labels for _, labels in digits.test_batches(50)])
    assert torch.equal(labels, digits.test.labels)
    (first, _), *_ = digits.test_batches(50)
    expected = (digits.test.images[:50].permute(0, 3, 1, 2) / 16 - 0.3053) / 0.3760
    assert torch.allclose(first, expected)


def test_shift_and_mirror_moves_whole_images():
    image = torch.arange(1, 26, dtype=torch.uint8).view(1, 5, 5, 1).repeat(64, 1, 1, 1)
    moved = shift_and_mirror(image, 2, torch.arange(64) % 2 == 0, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(image[0, :, :, 0], (2, 2, 2, 2))
    crops = {(top, left): padded[top : top + 5, left : left + 5] for top in range(5) for left in range(5)}
    seen = set()
    for sample in moved[..., 0]:
        matches = [
            (key, flip)
            for key, crop in crops.items()
            for flip in (0, 1)
            if torch.equal(sample, crop.flip(1) if flip else crop)
        ]
        assert matches
        seen.update(matches)
    assert len({flip for _, flip in seen}) == 2
    assert len({key for key, _ in seen}) > 12


def test_train_batches_alternate_the_mirrored_half(digits):
    images = digits.train.images
    train = data.Split(images, torch.arange(len(images)))
    numbered = dataclasses.replace(digits, train=train, num_classes=len(images), mirror=True, shift=0)

    def epoch(number: int) -> torch.Tensor:
        """All training images of an epoch, in the data set's order."""
        batches = list(numbered.train_batches(64, seed=5, epoch=number, flip="alternating"))
        images, numbers = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return images[numbers.argsort()]

    first, second, third = epoch(0), epoch(1), epoch(2)
    plain = torch.cat([images for images, _ in dataclasses.replace(numbered, test=numbered.train).test_batches(100)])
    mirrored = (first != plain).flatten(1).any(1)
    assert 0.4 < mirrored.float().mean() < 0.6
    assert torch.equal(first.flip(3), second)
    assert torch.equal(first, third)


def test_cut_out_sets_one_square_to_the_mean():
    images = torch.ones(200, 3, 9, 7).contiguous(memory_format=torch.channels_last)
    cut = cut_out(images, 4, torch.Generator().manual_seed(0)) == 0
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert (cut == cut[:, :1]).all()
    rows, columns = cut[:, 0].any(2).sum(1), cut[:, 0].any(1).sum(1)
    assert torch.equal(rows * columns, cut[:, 0].sum((1, 2)))  # a rectangle
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 4, 2, 4)  # at the border a part is outside
    assert cut.any(0).all()  # every pixel is hit


def test_limited_takes_the_first_examples(digits):
    small = digits.limited(train=10, test=4)
    assert (len(small.train), len(small.test)) == (10, 4)
    assert torch.equal(small.train.labels, digits.train.labels[:10])
    with pytest.raises(ValueError, match="limit: expected at least 1"):
        digits.limited(train=0)


def own(images: object = None, labels: object = None, **changes: object) -> data.Dataset:
    """A user's own data: 12 grey images of 6 x 5 pixels in 3 classes, unless told otherwise."""
    images = torch.zeros(12, 6, 5, 1, dtype=torch.uint8) if images is None else images
    labels = torch.arange(12) % 3 if labels is None else labels
    split = data.Split(images, labels)
    settings = {"num_classes": 3, "mean": (0.5,), "std": (0.2,), **changes}
    return data.Dataset(name="own", train=split, test=split, **settings)


def test_dataset_takes_own_data():
    assert own().image_size == (6, 5)
    assert own(torch.zeros(12, 1, 1, 64, dtype=torch.uint8), mean=(0.5,) * 64, std=(1.0,) * 64).in_channels == 64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: own(labels=torch.arange(12) % 3 + 1), "labels: expected 0 to 2, .* got 1 to 3 in train; number the"),
        (lambda: own(labels=torch.arange(12) % 3 - 1), "labels: expected 0 to 2, .* got -1 to 1 in train$"),
        (lambda: own(num_classes=2), "labels: expected 0 to 1, the numbers of 2 classes, got 0 to 2"),
        (lambda: own(num_classes=0), "num_classes: expected at least 1, got 0"),
        (lambda: own(labels=torch.zeros(12)), r"labels: expected int64 \[12\], got float32 \[12\]; .* labels.long"),
        (lambda: own(labels=torch.eye(12)), r"labels: .* got float32 \[12, 12\]; of one-hot rows take labels.argmax"),
        (lambda: own(labels=torch.arange(11) % 3), r"labels: expected int64 \[12\], got int64 \[11\]$"),
        (lambda: own(labels=[0] * 12), "labels: expected a tensor, got list"),
        (lambda: own(np.zeros((12, 6, 5, 1), np.uint8)), "images: expected a tensor, got ndarray"),
        (lambda: own(torch.full((12, 6, 5, 1), torch.nan)), r"images: expected uint8 .* got float32 .* \* 255"),
        (lambda: own(torch.rand(12, 6, 5, 1) * 255), "images: expected uint8 .* got float32"),
        (lambda: own(torch.zeros(12, 6, 5, dtype=torch.uint8)), r"images: .* uint8 \[12, 6, 5\]; grey images have"),
        (lambda: own(torch.zeros(0, 6, 5, 1, dtype=torch.uint8), torch.arange(0)), "images: expected at least one"),
        (lambda: own(torch.zeros(12, 0, 5, 1, dtype=torch.uint8)), r"images: expected pixels, got uint8 \[12, 0,"),
        (lambda: own(mean=(0.4, 0.5, 0.6), std=(0.2,) * 3), "mean: expected a value for each .* channels, 1, got 3"),
        (lambda: own(std=(0.2,) * 3), "std: expected a value for each"),
        (lambda: own(std=(0.0,)), "std: expected finite numbers > 0, got"),
        (lambda: own(mean=(math.nan,)), "mean: expected finite numbers, got"),
        (lambda: own(full_scale=0.0), "full_scale: expected a finite number > 0"),
        (lambda: own(shift=-1), "shift: expected at least 0"),
        (
            lambda: own(torch.zeros(12, 3, 6, 5, dtype=torch.uint8), mean=(0.5,) * 3, std=(0.2,) * 3),
            r"images: expected \[N, H, W, C\], got \[12, 3, 6, 5\], which looks like \[N, C, H, W\]: permute",
        ),
        (
            lambda: own(torch.zeros(12, 1, 28, 28, dtype=torch.uint8)),
            r"images: .* got \[12, 1, 28, 28\], which looks like \[N, C, H, W\]",
        ),
        (
            lambda: dataclasses.replace(own(), test=own(torch.zeros(12, 5, 6, 1, dtype=torch.uint8)).test),
            r"test: expected images of \[6, 5, 1\], as for training, got \[5, 6, 1\]",
        ),
    ],
)
def test_dataset_names_what_is_wrong_with_own_data(make, message):
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        make()


@pytest.mark.parametrize("layout", [cifar.CIFAR10, cifar.CIFAR100], ids=lambda layout: layout.name)
@pytest.mark.parametrize("where", ["folder", "parent"])
def test_load_cifar_reads_every_record_of_the_official_layout(tmp_path, layout, where):
    written = write_cifar(tmp_path / layout.folder, layout)
    loaded = data.load(layout.name, tmp_path / layout.folder if where == "folder" else tmp_path)
    records = np.concatenate([written[name] for name in layout.train_files])
    assert torch.equal(loaded.train.labels, torch.from_numpy(records[:, layout.label_bytes - 1].astype(np.int64)))
    # plane-major in the file: red plane first, rows within it
    assert loaded.train.images[3, 5, 7, 2] == records[3, layout.label_bytes + 2 * 1024 + 5 * 32 + 7]
    assert len(loaded.test) == 7


def damage_truncate(folder: Path) -> str:
    path = folder / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-1])
    return "data_batch_2.bin: expected records of 3073 bytes, got 21510 bytes"


def damage_empty(folder: Path) -> str:
    (folder / "test_batch.bin").write_bytes(b"")
    return "test_batch.bin: expected records of 3073 bytes, got 0 bytes"


def damage_label(folder: Path) -> str:
    path = folder / "data_batch_5.bin"
    content = bytearray(path.read_bytes())
    content[3073] = 10
    path.write_bytes(bytes(content))
    return "data_batch_5.bin: record 1 has label 10, expected less than 10"


def damage_missing(folder: Path) -> str:
    (folder / "data_batch_4.bin").unlink()
    return "lacks data_batch_4.bin of cifar10"


def damage_all(folder: Path) -> str:
    for file in folder.iterdir():
        file.unlink()
    return "data_dir: expected the files of cifar10"


@pytest.mark.parametrize("damage", [damage_truncate, damage_empty, damage_label, damage_missing, damage_all])
def test_load_cifar_names_the_damaged_file(tmp_path, damage):
    write_cifar(tmp_path / cifar.CIFAR10.folder, cifar.CIFAR10)
    message = damage(tmp_path / cifar.CIFAR10.folder)
    with pytest.raises(ValueError, match=message):
        data.load("cifar10", tmp_path)


def test_load_names_the_known_data_sets():
    with pytest.raises(ValueError, match=r"data: expected one of cifar10, cifar100, digits.*, got 'mnist'"):
        data.load("mnist")


def test_load_digits_refuses_a_folder(tmp_path):
    with pytest.raises(ValueError, match="data_dir"):
        data.load("digits", tmp_path)


@pytest.fixture
def archive_server(tmp_path):
    """A web server with a small archive in CIFAR-10's layout; yields the layout that points there."""
    published = tmp_path / "published"
    write_cifar(published / cifar.CIFAR10.folder, cifar.CIFAR10)
    archive = published / "cifar-10-binary.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(published / cifar.CIFAR10.folder, arcname=cifar.CIFAR10.folder)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=published))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield dataclasses.replace(
        cifar.CIFAR10,
        url=f"http://127.0.0.1:{server.server_port}/{archive.name}",
        sha256=hashlib.sha256(archive.read_bytes()).hexdigest(),
    )
    server.shutdown()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    pooch = pytest.importorskip("pooch", reason="pooch is not installed")
    pytest.importorskip("tqdm", reason="tqdm is not installed")
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_load_cifar_downloads_once_and_checks_the_archive(archive_server, cache):
    assert len(cifar.load(archive_server, None).train) == 35
    unreachable = dataclasses.replace(archive_server, url="http://127.0.0.1:1/cifar-10-binary.tar.gz")
    assert len(cifar.load(unreachable, None).train) == 35  # from the cache


def test_load_cifar_refuses_a_download_with_another_checksum(archive_server, cache):
    wrong = dataclasses.replace(archive_server, sha256="0" * 64)
    with pytest.raises(ValueError, match="fetch the archive from any mirror"):
        cifar.load(wrong, None)


@pytest.mark.skipif("SCA_KERNELS_CIFAR10_DIR" not in os.environ, reason="SCA_KERNELS_CIFAR10_DIR is not set")
def test_load_cifar_reads_the_real_images():
    loaded = data.load("cifar10", os.environ["SCA_KERNELS_CIFAR10_DIR"])
    assert len(loaded.train) >= 5000
    pixels = loaded.train.images[:5000].float().flatten(0, 2) / 255
    assert torch.allclose(pixels.mean(0), torch.tensor(loaded.mean), atol=0.02)
    assert torch.allclose(pixels.std(0), torch.tensor(loaded.std), atol=0.02)


def test_frames_that_would_fill_a_gpu_stay_on_the_host(monkeypatch):
    frames = torch.zeros(4, 3, 8, 8, 2, dtype=torch.uint8)
    split = data.Split(frames, torch.arange(4))
    recordings = data.Dataset("frames", split, split, 4, (0.0, 0.0), (1.0, 1.0), full_scale=1.0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * frames.nbytes, 10**9))
    held = recordings.to("cuda:0")
    assert (held.train.images.device.type, held.device) == ("cpu", torch.device("cuda:0"))
    assert held.train.images.data_ptr() == frames.data_ptr()
    assert held.to("cpu").device is None


def test_train_loader_refuses_an_augmentation_that_there_is_not(digits):
    with pytest.raises(TypeError, match="flipp"):
        digits.train_loader(8, flipp="random")
