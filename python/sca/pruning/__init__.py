"""Structured pruning and regrowth by spiking activity: score, schedule, selection and surgery, each in its own file."""

from .attach import AttachReport, GroupRow, attach_groups
from .compact import compact
from .schedule import Plan
from .scheduler import GroupChange, PruneEvent, SCAScheduler

__all__ = [
    "AttachReport",
    "GroupChange",
    "GroupRow",
    "Plan",
    "PruneEvent",
    "SCAScheduler",
    "attach_groups",
    "compact",
]
