"""`python -m benchmarks.run [A1 A2 ...]`: measure, store, print one table. Without ids: every case."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import results

ROOT = Path(__file__).resolve().parents[1]
# Fresh large tensors cost page faults unless freed memory is kept; both ways are told where tensors are that large.
BOTH_ALLOCATORS = ("A1", "A2")


def measure(ids: list[str], allocator: str, rounds: int | None) -> int:
    """Run the cases in their own process (the allocator's setting cannot be undone); returns its exit status."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "benchmarks",
        "--benchmark-enable",
        "--benchmark-columns=median,iqr,rounds",
    ]
    command += ["-q", f"--allocator={allocator}", f"--command-line=python -m benchmarks.run {' '.join(ids)}".rstrip()]
    command += ["-k", " or ".join(f"{name}-" for name in ids)] if ids else []
    command += [f"--rounds={rounds}"] if rounds else []
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def table() -> Table:
    """All stored results, one line per figure and party."""
    shown = Table("id", "figure", "ours", "against", "ratio (p20 to p80)", "bar", "reached")
    for result in results.stored():
        for row in results.rows(result):
            shown.add_row(*row)
        shown.add_section()
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", nargs="*", help="cases to measure, as named in benchmarks/cases.py")
    parser.add_argument("--rounds", type=int, help="take this many rounds and store nothing")
    parser.add_argument("--table", action="store_true", help="measure nothing, print what is stored")
    parser.add_argument("--readme", action="store_true", help="measure nothing, write what is stored into README.md")
    options = parser.parse_args()
    status = 0
    if options.readme:
        readme = ROOT / "README.md"
        readme.write_text(results.spliced(readme.read_text()))
    elif not options.table:
        status = measure(options.ids, "reused", options.rounds)
        both = [name for name in BOTH_ALLOCATORS if name in options.ids or not options.ids]
        status |= measure(both, "default", options.rounds) if both else 0
    Console(width=None if sys.stdout.isatty() else 160).print(table())
    return status


if __name__ == "__main__":
    sys.exit(main())
