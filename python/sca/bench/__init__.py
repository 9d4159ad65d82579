"""Dense against channel-sparse networks, ours and the peers': throughput and memory (``sca bench``)."""

from typing import TYPE_CHECKING

from ..lazy import export

if TYPE_CHECKING:
    from .config import BenchConfig
    from .measure import measure
    from .report import plot, table

__all__ = export(__name__)
