"""The comparison of Li et al. (ICML 2024), table 1, as one command: ``sca bench table1``."""

from typing import TYPE_CHECKING

from ...lazy import export

if TYPE_CHECKING:
    from .cells import Cell, run_cell
    from .config import Table1Config
    from .export import write_tables
    from .report import plot, results, tables

__all__ = export(__name__)
