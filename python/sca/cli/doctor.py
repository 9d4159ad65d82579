"""``sca doctor``: which backends work here, and what would bring the others."""

from __future__ import annotations

from .errors import reported


@reported
def doctor() -> None:
    """Show each backend, whether it is on, why, and the fix."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sca_kernels import doctor as kernels_doctor

    table = Table("backend", "on", "detail", "fix", title="sca doctor")
    for row in kernels_doctor.report():
        # Escaped, or the extras in `pip install 'sca_kernels[triton]'` would be taken for markup.
        table.add_row(row.name, "yes" if row.on else "no", escape(row.detail), escape(row.fix))
    Console().print(table)
