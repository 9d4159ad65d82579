"""What a network costs to run, measured on data: connections, operations, SynOps, energy."""

from .measure import CostReport, LayerReport, report_cost
from .shares import connectivity, density

__all__ = ["CostReport", "LayerReport", "connectivity", "density", "report_cost"]
