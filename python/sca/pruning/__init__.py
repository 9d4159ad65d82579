"""Structured pruning and regrowth by spiking activity: score, schedule, selection and surgery, each in its own file."""

from .compact import compact
from .ranks import RanksDiffer
from .schedule import Plan
from .scheduler import GroupChange, NotFinite, PruneEvent, SCAScheduler

__all__ = ["GroupChange", "NotFinite", "Plan", "PruneEvent", "RanksDiffer", "SCAScheduler", "compact"]
