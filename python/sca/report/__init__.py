"""Runs as tables, figures and pages."""

from ..cost import CostReport, LayerReport, report_cost

__all__ = ["CostReport", "LayerReport", "report_cost"]
