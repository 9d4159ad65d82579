"""Recordings of one's own: NumPy's .npy and .npz, HDF5."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .events import Events, of_columns

# Groups in groups of an HDF5 file, at most.
_DEEPEST = 8


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
    return of_columns(named, file, sensor, unsorted, "event")


def _named(held: Any, columns: str) -> Mapping[str, np.ndarray]:
    """The four arrays by name, of an array or several by name.

    Raises:
        ValueError: they are not there.
    """
    if isinstance(held, Mapping) and held.keys() >= {*Events._fields}:
        return held
    if isinstance(held, Mapping) and len(held) == 1:
        (held,) = held.values()
    if isinstance(held, Mapping):
        raise ValueError(f"got arrays {', '.join(held)}" if held else "got none")
    if held.dtype.names is not None and {*held.dtype.names} >= {*Events._fields}:
        return {name: held[name].reshape(-1) for name in Events._fields}
    if held.ndim == 2 and held.shape[1] == len(Events._fields):
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
        for _ in range(_DEEPEST):  # a group may hold itself
            if len(place) == 1 and isinstance(next(iter(place.values())), h5py.Group):
                (place,) = place.values()
        return {name: values[()] for name, values in place.items() if isinstance(values, h5py.Dataset)}
