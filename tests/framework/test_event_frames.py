"""Frames of events: against a loop over events, what stays whole, and settings that don't go together."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sca.data import FrameSettings
from sca.data.frames import boundaries, integrate
from sca.data.readers import Events
from tests.framework import event_files as files

SENSOR = (30, 40)


def recording(count: int = 517, last: int = 10_000) -> Events:
    return Events(*files.columns(files.random_events(count, SENSOR, last=last)).values())


def by_loop(events: Events, settings: FrameSettings, steps: int, size: tuple[int, int]) -> np.ndarray:
    """One event at a time."""
    frames = np.zeros((steps, *size, 2), np.int64)
    count, first, last = len(events.t), events.t[0], events.t[-1]
    for number, (t, x, y, p) in enumerate(zip(*(values.tolist() for values in events), strict=True)):
        if settings.frame_by == "duration":
            frame = (t - first) // settings.frame_duration
            if frame >= steps:
                continue
        else:
            at, step = (
                (number, count // steps) if settings.frame_by == "number" else (t - first, (last - first) // steps)
            )
            frame = min(at // step if step else steps - 1, steps - 1)
        frames[frame, y * size[0] // SENSOR[0], x * size[1] // SENSOR[1], p] += 1
    most = {"sum": None, "binary": 1, "clipped": settings.frame_clip}[settings.frame_values]
    return frames if most is None else frames.clip(max=most)


ENDS = ({"frame_by": "number"}, {"frame_by": "time"}, {"frame_by": "duration", "frame_duration": 1500})


@pytest.mark.parametrize("values", ["sum", "binary", "clipped"])
@pytest.mark.parametrize("size", [SENSOR, (11, 16), (1, 1)], ids=str)
@pytest.mark.parametrize("ends", ENDS, ids=lambda ends: ends["frame_by"])
@pytest.mark.parametrize("steps", [1, 4, 7])
def test_integrate_is_what_a_loop_over_events_makes(ends, values, size, steps):
    settings = FrameSettings(**ends, frame_values=values, frame_clip=2)
    assert np.array_equal(
        integrate(recording(), settings, steps, SENSOR, size), by_loop(recording(), settings, steps, size)
    )


@pytest.mark.parametrize("ends", ENDS, ids=lambda ends: ends["frame_by"])
@pytest.mark.parametrize(("count", "last"), [(1, 2), (3, 100), (50, 1), (500, 3)], ids=str)
def test_integrate_of_few_events_or_times_loses_none(ends, count, last):
    settings, events = FrameSettings(**ends), recording(count, last)
    frames = integrate(events, settings, 5, SENSOR, SENSOR)
    assert frames.sum() == count
    assert np.array_equal(frames, by_loop(events, settings, 5, SENSOR))


def test_boundaries_give_the_rest_to_the_last_frame():
    assert boundaries(recording(23), FrameSettings(), 5).tolist() == [0, 4, 8, 12, 16, 23]


@pytest.mark.parametrize("count", [1, 4, 5, 6, 99, 100, 101])
@pytest.mark.parametrize("ends", ENDS[:2], ids=lambda ends: ends["frame_by"])
def test_boundaries_leave_no_event_out_and_take_none_twice(ends, count):
    bounds = boundaries(recording(count), FrameSettings(**ends), 5)
    assert (bounds[0], bounds[-1], len(bounds)) == (0, count, 6)
    assert (np.diff(bounds) >= 0).all()


def test_boundaries_by_time_put_an_event_at_an_end_into_the_next_frame():
    """t_last - t_first = 103: four frames of 20 microseconds, and the last of 23."""
    t = np.array([7, 26, 27, 46, 47, 66, 67, 86, 87, 107, 110])
    events = Events(t, *np.zeros((3, len(t)), np.int64))
    assert boundaries(events, FrameSettings(frame_by="time"), 5).tolist() == [0, 2, 4, 6, 8, 11]
    by_duration = FrameSettings(frame_by="duration", frame_duration=20)
    assert boundaries(events, by_duration, 5).tolist() == [0, 2, 4, 6, 8, 9]


@pytest.mark.parametrize("ends", ENDS, ids=lambda ends: ends["frame_by"])
@pytest.mark.parametrize("first", [-(2**40), 0, 2**31 - 5_000, 2**32 - 5_000, 2**62], ids=str)
def test_integrate_counts_times_from_the_first_event(ends, first):
    settings, events = FrameSettings(**ends), recording()
    late = events._replace(t=events.t + first)
    expected = integrate(events, settings, 4, SENSOR, SENSOR)
    assert np.array_equal(integrate(late, settings, 4, SENSOR, SENSOR), expected)


@pytest.mark.parametrize("ends", ENDS, ids=lambda ends: ends["frame_by"])
@pytest.mark.parametrize("size", [SENSOR, (11, 16), (90, 120)], ids=str)
def test_integrate_takes_events_of_any_type_and_leaves_them_alone(ends, size):
    """As readers give them: no product of a coordinate of 8 bits and a side may wrap, nor a sum of times of 32."""
    events, settings = recording(), FrameSettings(**ends)
    late = events._replace(t=events.t + 2**32 - 10_001)
    narrow = Events(*(values.astype(kind) for values, kind in zip(late, ("u4", "u1", "u4", "u1"), strict=True)))
    held = [values.copy() for values in narrow]
    expected = integrate(events, settings, 4, SENSOR, size)
    assert np.array_equal(integrate(narrow, settings, 4, SENSOR, size), expected)
    assert all(np.array_equal(*pair) for pair in zip(held, narrow, strict=True))


def test_integrate_of_long_frames_takes_all_events():
    settings = FrameSettings(frame_by="duration", frame_duration=2**31 - 1)
    assert integrate(recording(), settings, 1000, (30, 40), (3, 4))[0].sum() == 517


@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize("by", ["number", "time"])
def test_integrate_makes_the_frames_that_spikingjelly_makes(by, steps):
    utils = files.spikingjelly("utils")
    events = recording(3_000)
    expected = utils.integrate_events_by_fixed_frames_number(events._asdict(), by, steps, *SENSOR)
    frames = integrate(events, FrameSettings(frame_by=by), steps, SENSOR, SENSOR)
    assert np.array_equal(frames.transpose(0, 3, 1, 2), expected)


def test_duration_makes_the_frames_that_spikingjelly_makes():
    """Of which there are as many as a recording is long."""
    utils = files.spikingjelly("utils")
    events = recording(3_000)
    expected = utils.integrate_events_by_fixed_duration(events._asdict(), 1_500, *SENSOR)
    settings = FrameSettings(frame_by="duration", frame_duration=1_500)
    frames = integrate(events, settings, len(expected) + 2, SENSOR, SENSOR).transpose(0, 3, 1, 2)
    assert np.array_equal(frames[: len(expected)], expected)
    assert not frames[len(expected) :].any()


def test_duration_cuts_what_is_longer_and_pads_what_is_shorter():
    events = recording(200, 1000)
    long = FrameSettings(frame_by="duration", frame_duration=100)
    assert integrate(events, long, 3, SENSOR, SENSOR).sum() == (events.t < events.t[0] + 300).sum()
    short = integrate(events, FrameSettings(frame_by="duration", frame_duration=600), 5, SENSOR, SENSOR)
    assert short[2:].sum() == 0
    assert short.sum() == 200


def test_off_stands_before_on():
    events = Events(*(np.array(values) for values in ([5, 6, 7], [3, 3, 9], [2, 2, 4], [0, 1, 1])))
    frames = integrate(events, FrameSettings(), 1, SENSOR, SENSOR)
    assert frames[0, 2, 3].tolist() == [1, 1]
    assert frames[0, 4, 9].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frame_by": "events"}, "frame_by: expected one of number, time, duration"),
        ({"frame_by": "duration"}, "frame_duration: expected a number of microseconds"),
        ({"frame_duration": 5}, "frame_duration: expected none for frame_by 'number', got 5"),
        ({"frame_by": "duration", "frame_duration": 0}, "frame_duration: expected at least 1"),
        ({"frame_by": "time", "frame_duration": 5}, "frame_duration: expected none for frame_by 'time', got 5"),
        ({"frame_by": "duration", "frame_duration": 2**31}, "frame_duration: expected at most 2,147,483,647"),
        ({"frame_by": "duration", "frame_duration": 1.5}, "frame_duration: expected"),
        ({"frame_by": None}, "frame_by: expected"),
        ({"frame_clip": 256}, "frame_clip: expected at most 255"),
        ({"frame_clip": True}, "frame_clip: expected"),
        ({"frame_size": 4097}, "frame_size: expected at most 4,096"),
        ({"frame_size": "48"}, "frame_size: expected"),
        ({"sensor": (1, 2, 3)}, "sensor: expected height and width"),
        ({"sensor": 128}, "sensor: expected"),
        ({"event_columns": "txyy"}, "event_columns: expected the letters t, x, y and p, each once"),
        ({"event_columns": "TXYP"}, "event_columns: expected the letters t, x, y and p, each once"),
        ({"event_columns": None}, "event_columns: expected"),
        ({"frame_values": "mean"}, "frame_values: expected one of sum, binary, clipped"),
        ({"frame_clip": 0}, "frame_clip: expected at least 1"),
        ({"frame_size": 0}, "frame_size: expected at least 1"),
        ({"frame_resize": "bilinear"}, "frame_resize: expected one of integrate, interpolate"),
        ({"event_split": "half"}, "event_split: expected one of tebn, last_tenth, random"),
        ({"sensor": (128,)}, "sensor: expected height and width"),
        ({"sensor": (0, 5)}, "sensor: expected numbers, each at least 1"),
        ({"event_columns": "xyt"}, "event_columns: expected the letters t, x, y and p, each once"),
        ({"unsorted": "drop"}, "unsorted: expected one of refuse, sort"),
        ({"cache_dir": 3}, "cache_dir: expected str or none"),
    ],
    ids=lambda value: " ".join(map(str, itertools.chain(*value.items()))) if isinstance(value, dict) else "",
)
def test_frame_settings_name_what_is_wrong(fields, message):
    with pytest.raises(ValueError, match=message):
        FrameSettings(**fields)
