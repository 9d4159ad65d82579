"""Structured pruning and regrowth by spiking activity: score, schedule, selection and surgery, each in its own file.

Everything loads at its first use: the settings alone need no torch.
"""

from typing import TYPE_CHECKING

from ..lazy import export

if TYPE_CHECKING:
    from ..structure import AttachReport, GroupRow, attach_groups, compact
    from .ranks import RanksDiffer
    from .schedule import Plan
    from .scheduler import GroupChange, NotFinite, PruneEvent, SCAScheduler
    from .settings import PruneSettings

__all__ = export(__name__)
