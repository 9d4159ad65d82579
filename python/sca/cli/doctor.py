"""``sca doctor``: which backends work here, and what would bring the others."""

from __future__ import annotations

from .errors import reported
from .terminal import terminal


@reported
def doctor() -> None:
    """Show each backend, whether it is on, why, and the fix."""
    from rich.table import Table

    from sca_kernels import doctor as kernels_doctor

    table = Table("backend", "on", title="sca doctor")
    for name in ("detail", "fix"):
        table.add_column(name, overflow="fold")  # a command is told to its end
    for row in (*kernels_doctor.report(), kernels_doctor.compile_row()):
        table.add_row(row.name, "yes" if row.on else "no", row.detail, row.fix)
    terminal().print(table)
