"""How recordings of event cameras become frames: settings of a run, which need no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ..settings import check, setting

__all__ = ["FRAMES_OF_EVENTS", "MAX_TIME_STEPS", "FrameSettings"]

#: More is a slip of the pen, which would end in no memory.
MAX_TIME_STEPS = 2**16

FRAME_ENDS = ("number", "time", "duration")
FRAME_VALUES = ("sum", "binary", "clipped")
RESIZES = ("integrate", "interpolate")
UNSORTED = ("refuse", "sort")
# No camera has longer sides.
_MOST, _MOST_SIDE = 2**31 - 1, 4096


@dataclass(frozen=True)
class FrameSettings:
    """How recordings of event cameras become frames; data sets of still images have none.

    Raises:
        ValueError: a value is of another type or out of range; the message names the field.
    """

    frame_by: str = setting("number", names=FRAME_ENDS)
    """Where an event camera's frames end: ``number`` (all of as many events), ``time`` (all as long) or ``duration``
    (each of ``frame_duration``). There are ``time_steps`` of them; of the first two the last takes the rest, by
    ``duration`` longer recordings are cut and shorter ones end with empty frames."""

    frame_duration: int | None = setting(None, low=1, high=_MOST)
    """Microseconds of a frame, for ``frame_by`` ``duration``."""

    frame_values: str = setting("sum", names=FRAME_VALUES)
    """What stands in a pixel: ``sum`` (how many events), ``binary`` (1 where there was one) or ``clipped`` (the sum, at
    most ``frame_clip``)."""

    frame_clip: int = setting(3, low=1, high=255)
    """Largest number in ``clipped`` frames."""

    frame_size: int | None = setting(None, low=1, high=_MOST_SIDE)
    """Side of the frames in pixels; left out, 48 for ``dvs_cifar10``, else as the camera has it."""

    frame_resize: str = setting("integrate", names=RESIZES)
    """How frames get another size: ``integrate`` (events are added up in larger pixels) or ``interpolate`` (frames of
    the camera's size are resampled, bilinear, as many papers do)."""

    event_split: str | None = setting(None, names="sca.data.splits:SPLITS")
    """Test recordings of ``dvs_cifar10``, which has no official split: ``tebn`` (numbers 0 to 99 of each class; where
    none is named), ``last_tenth`` (of each class in the order of file names, as SpikingJelly has it) or ``random``
    (a fixed list)."""

    sensor: tuple[int, ...] | None = setting(None, low=1, high=_MOST_SIDE)
    """Height and width in pixels of the camera that ``event_arrays`` are of."""

    event_columns: str = "txyp"
    """Order of the columns in plain arrays of ``event_arrays``."""

    unsorted: str = setting("refuse", names=UNSORTED)
    """What to do with recordings whose times run backwards: ``refuse`` or ``sort``."""

    cache_dir: str | None = setting(None, movable=True)
    """Folder that frames, unpacked archives and downloads are kept in; left out, the user's cache."""

    def __post_init__(self) -> None:
        check(self)
        self.check_frames()

    def refuse(self, data: str, why: str, *names: str) -> None:
        """ValueError that names the first of these fields which has another value than its default.

        Args:
            data: the data set that has no use for them.
            why: as in "which has an official split".
        """
        defaults = {field.name: field.default for field in fields(FrameSettings)}
        for name in names:
            if getattr(self, name) != defaults[name]:
                raise ValueError(f"{name}: expected to be left out for {data}, {why}, got {getattr(self, name)!r}")

    def check_frames(self) -> None:
        """ValueError where fields, each of which may be right, don't go together."""
        if self.sensor is not None and len(self.sensor) != 2:
            raise ValueError(f"sensor: expected height and width, got {','.join(map(str, self.sensor))!r}")
        if sorted(self.event_columns) != sorted("txyp"):
            raise ValueError(
                f"event_columns: expected the letters t, x, y and p, each once, got {self.event_columns!r}"
            )
        if (self.frame_by == "duration") != (self.frame_duration is not None):
            raise ValueError(
                f"frame_duration: expected {'a number of microseconds' if self.frame_duration is None else 'none'} for "
                f"frame_by {self.frame_by!r}, got {self.frame_duration}"
            )


#: What images have no use for.
FRAMES_OF_EVENTS = tuple(field.name for field in fields(FrameSettings) if field.name != "cache_dir")
