"""Digits: 1,797 handwritten digits of 8x8 pixels that ship with scikit-learn (UCI optical recognition, test part)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from .dataset import Dataset, Split


def load(data_dir: Path | None) -> Dataset:
    """10 classes, ``[N, 1, 8, 8]``; every fifth example of each class is a test example (fixed, stratified 80/20).

    Raises:
        ValueError: ``data_dir`` is given (the images are embedded in scikit-learn).
        ImportError: scikit-learn is missing.
    """
    if data_dir is not None:
        raise ValueError(f"data_dir: digits ship with scikit-learn and take no folder, got {data_dir}")
    from sklearn.datasets import load_digits  # a second of import time that no other data set needs

    digits = load_digits()
    rank_in_class = np.empty(len(digits.target), dtype=np.int64)
    for label in range(10):
        members = digits.target == label
        rank_in_class[members] = np.arange(members.sum())
    in_test = torch.from_numpy(rank_in_class % 5 == 0)
    images = torch.from_numpy(digits.images).to(torch.uint8)[..., None]
    labels = torch.from_numpy(digits.target).to(torch.int64)
    return Dataset(
        name="digits",
        train=Split(images[~in_test], labels[~in_test]),
        test=Split(images[in_test], labels[in_test]),
        num_classes=10,
        mean=(0.3053,),
        std=(0.3760,),
        full_scale=16.0,
        shift=1,
    )


DATASETS = {"digits": load}
