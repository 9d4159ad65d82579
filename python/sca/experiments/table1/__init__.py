"""The comparison of Li et al. (ICML 2024), table 1, as one command: ``sca bench table1``."""

from ...lazy import export

__all__ = export(
    __name__,
    {
        "Cell": ".cells",
        "Table1Config": ".config",
        "plot": ".report",
        "results": ".report",
        "run_cell": ".cells",
        "tables": ".report",
        "write_tables": ".export",
    },
)
