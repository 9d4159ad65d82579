"""Recordings of one's own: NumPy's .npy and .npz, HDF5."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .events import Events, checked

_NAMES = ("t", "x", "y", "p")


def read(file: Path, content: bytes, sensor: tuple[int, int], unsorted: str, columns: str = "txyp") -> Events:
    """Arrays or fields of the names t (microseconds), x, y, p (0 or -1: OFF, 1: ON) of the same length, in any order;
    also in a group of an HDF5 file, where that is its only one, or as a structured array, the only one of its file.

    Args:
        columns: order of the columns of a plain array ``[N, 4]``, which names none.

    Args, Raises: as for :func:`sca.data.readers.read`.
    """
    of_file = _of_hdf5 if file.suffix.lower() in (".h5", ".hdf5") else _of_numpy
    try:
        named = _named(of_file(file, io.BytesIO(content)), columns)
    except ImportError:
        raise
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise ValueError(f"{file}: expected arrays or fields t, x, y and p, or one array [N, 4] ({error})") from error
    values = {name: np.asarray(named[name]) for name in _NAMES}
    lengths = {name: list(value.shape) for name, value in values.items()}
    if (
        any(value.ndim != 1 or value.dtype.kind not in "buif" for value in values.values())
        or len({value.size for value in values.values()}) > 1
    ):
        raise ValueError(f"{file}: expected numbers t, x, y, p of one length each, got {lengths}")
    for name, value in values.items():
        if value.dtype.kind == "f" and not (value == np.trunc(value)).all():
            first = int((value != np.trunc(value)).argmax())
            advice = "; times are microseconds" if name == "t" else ""
            raise ValueError(f"{file}, event {first:,}: expected whole numbers {name}, got {value[first]}{advice}")
    t, x, y, p = (value.astype(np.int64) for value in values.values())
    wrong = (p != 1) & (p != (-1 if (p == -1).any() else 0))
    if wrong.any():
        first = int(wrong.argmax())
        raise ValueError(f"{file}, event {first:,}: expected polarities 0 and 1, or -1 and 1, got {p[first]}")
    events = Events(t, x, y, (p == 1).astype(np.int64))
    return checked(events, file, sensor, unsorted, lambda number: f"event {number:,}")


def _named(held: Any, columns: str) -> Mapping[str, np.ndarray]:
    """The four arrays by name, of an array or several by name.

    Raises:
        ValueError: they are not there.
    """
    if isinstance(held, Mapping) and held.keys() >= {*_NAMES}:
        return held
    if isinstance(held, Mapping) and len(held) == 1:
        (held,) = held.values()
    if isinstance(held, Mapping):
        raise ValueError(f"got arrays {', '.join(held)}" if held else "got none")
    if held.dtype.names is not None and {*held.dtype.names} >= {*_NAMES}:
        return {name: held[name].reshape(-1) for name in _NAMES}
    if held.ndim == 2 and held.shape[1] == len(_NAMES):
        return dict(zip(columns, held.T, strict=True))
    raise ValueError(f"got an array {held.dtype} {list(held.shape)}")


def _of_numpy(file: Path, stream: io.BytesIO) -> np.ndarray | Mapping[str, np.ndarray]:
    held = np.load(stream, allow_pickle=False)
    return held if isinstance(held, np.ndarray) else {name: held[name] for name in held.files}


def _of_hdf5(file: Path, stream: io.BytesIO) -> Mapping[str, np.ndarray]:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{file}: HDF5 files need h5py: pip install 'sca_kernels[events]'") from error
    with h5py.File(stream, "r") as held:
        place: Any = held
        while len(place) == 1 and isinstance(next(iter(place.values())), h5py.Group):
            (place,) = place.values()
        return {name: values[()] for name, values in place.items() if isinstance(values, h5py.Dataset)}
