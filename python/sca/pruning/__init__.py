"""Structured pruning and regrowth by spiking activity: score, schedule, selection and surgery, each in its own file."""

from ..structure import AttachReport, GroupRow, attach_groups, compact
from .ranks import RanksDiffer
from .schedule import Plan
from .scheduler import GroupChange, NotFinite, PruneEvent, SCAScheduler

__all__ = [
    "AttachReport",
    "GroupChange",
    "GroupRow",
    "NotFinite",
    "Plan",
    "PruneEvent",
    "RanksDiffer",
    "SCAScheduler",
    "attach_groups",
    "compact",
]
