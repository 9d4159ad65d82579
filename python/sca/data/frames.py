"""Frames of recordings: when one ends and the next begins, and what stands in its pixels.

Counts add up: a smaller frame is made by adding the events of the pixels that become one, nothing is interpolated.
"""

from __future__ import annotations

import numpy as np

from .readers import Events
from .settings import FrameSettings

__all__ = ["boundaries", "integrate"]


def boundaries(events: Events, settings: FrameSettings, steps: int) -> np.ndarray:
    """Where each of ``steps`` frames begins and the last one ends: int64 ``[steps + 1]``, numbers of events."""
    t = events.t
    if settings.frame_by == "number":
        bounds = len(t) // steps * np.arange(steps + 1)
    else:
        length = settings.frame_duration or (t[-1] - t[0]) // steps
        bounds = np.searchsorted(t, t[0] + length * np.arange(steps + 1))
        if settings.frame_by == "duration":
            return bounds
    bounds[-1] = len(t)
    return bounds


def integrate(
    events: Events, settings: FrameSettings, steps: int, sensor: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """The frames of a recording: int64 ``[steps, H, W, 2]``, OFF before ON.

    Args:
        events: at least one, in order, within the sensor.
        sensor, size: height and width of the camera and of the frames.
    """
    bounds = boundaries(events, settings, steps)
    x, y, p = (values[bounds[0] : bounds[-1]] for values in events[1:])
    cells = size[0] * size[1] * 2
    kind = np.uint32 if steps * cells < 2**32 else np.int64  # half as many bytes, and nearly all of the time goes here
    place = y.astype(kind)
    if size != sensor:
        place *= size[0]
        place //= sensor[0]
        x = x.astype(kind) * size[1] // sensor[1]
    place *= size[1]
    place += x.astype(kind, copy=False)
    place *= 2
    place += p.astype(kind, copy=False)
    place += np.repeat(np.arange(0, steps * cells, cells, kind), bounds[1:] - bounds[:-1])
    frames = np.bincount(place, minlength=steps * cells).reshape(steps, *size, 2)
    if settings.frame_values == "sum":
        return frames
    return np.minimum(frames, 1 if settings.frame_values == "binary" else settings.frame_clip)
