"""One recording of an event camera, stored with a run: what the network is fed, for the run's page."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np

from ..files import write_json
from ..report.runs import MOST_FRAMES, MOST_SIDE

__all__ = ["store_recording"]


def store_recording(path: Path, frames: np.ndarray, label: int, class_name: str, told: str) -> None:
    """Write ``recording.json`` whole. Counts above 255, where a picture has long saturated, are stored as 255; of more
    than 16 frames, 16 that are chosen evenly, the first and the last among them, with the numbers of their time steps.

    Args:
        path: the file.
        frames: event counts, integers [T, H, W, 2], OFF before ON; H and W at most 512.
        label, class_name: of its class.
        told: how the frames were made, in words.

    Raises:
        TypeError: ``frames`` is no array of integers.
        ValueError: it is of another shape, or holds a negative count.
        OSError: the file could not be written.
    """
    if not isinstance(frames, np.ndarray) or frames.dtype.kind not in "iu":
        got = getattr(frames, "dtype", type(frames).__name__)
        raise TypeError(f"frames: expected an array of integers, got {got}")
    sizes = frames.shape[:3]
    if frames.ndim != 4 or frames.shape[3] != 2 or not min(sizes) or max(sizes[1:]) > MOST_SIDE:
        expected = f"[T, H, W, 2], H and W at most {MOST_SIDE}"
        raise ValueError(f"frames: expected {expected}, got {list(frames.shape)}")
    if frames.min() < 0:
        raise ValueError(f"frames: expected counts >= 0, got {frames.min()}")
    steps = {}
    if len(frames) > MOST_FRAMES:
        steps["steps"] = [at * (len(frames) - 1) // (MOST_FRAMES - 1) for at in range(MOST_FRAMES)]
        frames = frames[steps["steps"]]
    content = base64.b64encode(frames.clip(max=255).astype(np.uint8).tobytes()).decode("ascii")
    described = {"label": label, "class": class_name, "told": told, "shape": list(frames.shape), **steps}
    write_json(path, {**described, "frames": content})
