"""Dense against channel-sparse networks, ours and the peers': throughput and memory (``sca bench``)."""

from ..lazy import export

__all__ = export(__name__, {"BenchConfig": ".config", "measure": ".measure", "plot": ".report", "table": ".report"})
