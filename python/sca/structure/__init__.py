"""Which channels a network has and which of them are active: found, tried out, and cut for good."""

from .attach import AttachReport, GroupRow, attach_groups
from .compact import compact

__all__ = ["AttachReport", "GroupRow", "attach_groups", "compact"]
