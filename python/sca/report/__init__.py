"""What a network costs to run."""

from .cost import CostReport, LayerReport, report_cost

__all__ = ["CostReport", "LayerReport", "report_cost"]
