"""Dense against channel-sparse networks, ours and the peers': throughput and memory (``sca bench``)."""

from .config import BenchConfig
from .measure import measure
from .report import plot, table

__all__ = ["BenchConfig", "measure", "plot", "table"]
