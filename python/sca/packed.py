"""Many numbers in a line of JSON: float32, compressed, as text."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable

import numpy as np

__all__ = ["pack", "unpack"]


def pack(values: Iterable[float]) -> str:
    """Numbers as text: base64 of deflated float32, little-endian. NaN and infinities stay."""
    content = np.asarray(list(values), dtype="<f4").tobytes()
    return base64.b64encode(zlib.compress(content, 9)).decode("ascii")


def unpack(text: str, limit: int = 2**24) -> np.ndarray:
    """The numbers, float32 [n], that :func:`pack` was given.

    Raises:
        ValueError: it is something else, or more than ``limit`` numbers.
    """
    try:
        inflating = zlib.decompressobj()
        content = inflating.decompress(base64.b64decode(text, validate=True), 4 * limit)
    except (TypeError, ValueError, zlib.error) as error:  # binascii.Error is a ValueError
        raise ValueError(f"expected packed numbers ({error}), got {text!r:.60}") from error
    if not inflating.eof or inflating.unused_data or len(content) % 4:
        raise ValueError(f"expected packed numbers, at most {limit:,}, got {text!r:.60}")
    return np.frombuffer(content, dtype="<f4")
