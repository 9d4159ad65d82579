"""The comparison of Li et al. (ICML 2024), table 1, as one command: ``sca bench table1``."""

from .cells import Cell, run_cell
from .config import Table1Config
from .report import plot, results, tables

__all__ = ["Cell", "Table1Config", "plot", "results", "run_cell", "tables"]
