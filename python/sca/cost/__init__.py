"""What a network costs to run, measured on data: connections, operations, SynOps, energy."""

from .measure import CostReport, LayerReport, report_cost

__all__ = ["CostReport", "LayerReport", "report_cost"]
