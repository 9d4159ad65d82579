"""Which channels a network has and which of them are active: found, tried out, stored, restored, and cut for good."""

from .attach import AttachReport, GroupRow, attach_groups
from .compact import compact
from .record import restore_structure, structure_of

__all__ = ["AttachReport", "GroupRow", "attach_groups", "compact", "restore_structure", "structure_of"]
