"""CIFAR-10 and CIFAR-100 in the official binary layout.

Krizhevsky, "Learning multiple layers of features from tiny images", 2009.

A file is a row of records; a record is its label bytes and 3 x 32 x 32 pixels, red plane first. CIFAR-10 has one label
byte, CIFAR-100 two (coarse, then fine, which is the one used).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from .archives import Archive, cache_folder, download
from .dataset import Dataset, Split

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """Files of one of the two data sets, and where their archive is published."""

    name: str
    num_classes: int
    label_bytes: int
    folder: str
    train_files: tuple[str, ...]
    test_file: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    url: str
    sha256: str


CIFAR10 = Layout(
    name="cifar10",
    num_classes=10,
    label_bytes=1,
    folder="cifar-10-batches-bin",
    train_files=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test_file="test_batch.bin",
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
CIFAR100 = Layout(
    name="cifar100",
    num_classes=100,
    label_bytes=2,
    folder="cifar-100-binary",
    train_files=("train.bin",),
    test_file="test.bin",
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
)


def load(layout: Layout, data_dir: Path | None) -> Dataset:
    """10 or 100 classes, ``[N, 3, 32, 32]``; any number of records per file.

    Args:
        layout: CIFAR10 or CIFAR100.
        data_dir: the folder with the binary files, or its parent; None = download the archive once into the user's
            cache.

    Raises:
        ValueError: a file is missing, truncated, or holds a label out of range; the download failed or has another
            checksum.
    """
    folder = _download(layout) if data_dir is None else _find(layout, data_dir)
    return Dataset(
        name=layout.name,
        train=_read([folder / file for file in layout.train_files], layout),
        test=_read([folder / layout.test_file], layout),
        num_classes=layout.num_classes,
        mean=layout.mean,
        std=layout.std,
        shift=4,
        mirror=True,
    )


def _find(layout: Layout, data_dir: Path) -> Path:
    wanted = (*layout.train_files, layout.test_file)
    for folder in (data_dir, data_dir / layout.folder):
        try:
            missing = [file for file in wanted if not (folder / file).is_file()]
        except OSError as error:  # not allowed, or no name of a folder
            raise ValueError(f"data_dir: {error}") from error
        if not missing:
            return folder
        if len(missing) < len(wanted):
            raise ValueError(f"data_dir: {folder} lacks {', '.join(missing)} of {layout.name}")
    raise ValueError(
        f"data_dir: expected the files of {layout.name} ({', '.join(wanted)}) in {data_dir} or its folder "
        f"{layout.folder}"
    )


def _read(files: list[Path], layout: Layout) -> Split:
    record = layout.label_bytes + _PIXELS
    parts = []
    for file in files:
        raw = np.fromfile(file, dtype=np.uint8)
        if not raw.size or raw.size % record:
            raise ValueError(
                f"{file}: expected records of {record} bytes, got {raw.size} bytes: truncated or another format"
            )
        records = raw.reshape(-1, record)
        (bad,) = np.nonzero(records[:, layout.label_bytes - 1] >= layout.num_classes)
        if bad.size:
            label = records[bad[0], layout.label_bytes - 1]
            raise ValueError(f"{file}: record {bad[0]} has label {label}, expected less than {layout.num_classes}")
        parts.append(records)
    records = np.concatenate(parts)
    planes = records[:, layout.label_bytes :].reshape(-1, 3, 32, 32)
    labels = records[:, layout.label_bytes - 1].astype(np.int64)
    return Split(torch.from_numpy(np.ascontiguousarray(planes.transpose(0, 2, 3, 1))), torch.from_numpy(labels))


def _download(layout: Layout) -> Path:
    archive = Archive(layout.url.rpartition("/")[2], layout.url, f"sha256:{layout.sha256}")
    members = download(layout.name, archive, cache_folder(), untar_to=layout.name)
    return next(Path(member).parent for member in members if Path(member).name == layout.test_file)


DATASETS = {layout.name: partial(load, layout) for layout in (CIFAR10, CIFAR100)}
