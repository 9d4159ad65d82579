"""DVS-CIFAR10's recordings as MATLAB files, which some mirrors hold."""

from __future__ import annotations

import io
from pathlib import Path

from .events import Events, of_columns


def read(file: Path, content: bytes, sensor: tuple[int, int], unsorted: str) -> Events:
    """A ``.mat`` file with the array ``out1`` ``[N, 4]``, columns t in microseconds, x, y, p; read by SciPy.

    Args, Raises: as for :func:`sca.data.readers.read`.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(f"{file}: .mat files need SciPy: pip install 'sca_kernels[events]'") from error
    try:
        held = loadmat(io.BytesIO(content), variable_names=["out1"])
    except Exception as error:  # whatever a damaged file makes SciPy raise
        raise ValueError(f"{file}: expected a MATLAB file, got a damaged or another one ({error})") from error
    values = held.get("out1")
    if values is None or values.ndim != 2 or values.shape[1] != len(Events._fields):
        found = "none" if values is None else f"{values.dtype} {list(values.shape)}"
        raise ValueError(f"{file}: expected an array out1 of numbers [N, 4] (t, x, y, p), got {found}")
    return of_columns(dict(zip(Events._fields, values.T, strict=True)), file, sensor, unsorted, "row")
