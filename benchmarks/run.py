"""`python -m benchmarks.run [A1 A2 ...]`: measure, store, print one table. Without ids: all but what takes hours."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from . import results
from .cases import CASES

ROOT = Path(__file__).resolve().parents[1]
# Fresh large tensors cost page faults unless freed memory is kept; both ways are told where tensors are that large.
BOTH_ALLOCATORS = ("A1", "A2")
LONG = ("E5",)  # hours, where all images are there: by its name alone


def measure(ids: list[str], allocator: str, folder: Path, rounds: int | None) -> int:
    """Run the cases in their own process (the allocator's setting cannot be undone); returns its exit status."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "benchmarks",
        "-q",
        "-Wignore",
        "--benchmark-enable",
        f"--allocator={allocator}",
    ]
    command += ["--benchmark-columns=median,iqr,rounds", f"--cases={','.join(ids)}", f"--store={folder}"]
    command += [f"--command-line=python -m benchmarks.run {' '.join(ids)}"]
    command += [f"--rounds={rounds}"] if rounds else []
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def table(folder: Path) -> Table:
    """The results in a folder, one line per figure and party."""
    shown = Table("id", "figure", "ours", "against", "ratio (p20 to p80)", "bar", "reached")
    for result in results.stored(folder):
        for row in results.rows(result):
            shown.add_row(*row)
        shown.add_section()
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ids", nargs="*", help=f"cases to measure: {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, help="take this many rounds, for a quick look: print, store nothing")
    parser.add_argument("--table", action="store_true", help="measure nothing, print what is stored")
    parser.add_argument(
        "--readme", action="store_true", help="measure nothing, write what is stored into README.md and RESULTS.md"
    )
    options = parser.parse_args()
    if unknown := set(options.ids) - set(CASES):
        parser.error(f"ids: expected some of {', '.join(CASES)}, got {', '.join(sorted(unknown))}")

    status = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if options.rounds else results.FOLDER
        if options.readme:
            readme = ROOT / "README.md"
            readme.write_text(results.spliced(readme.read_text()))
            results.DOCUMENT.write_text(results.document())
        elif not options.table:
            ids = options.ids or [name for name in CASES if name not in LONG]
            status = measure(ids, "reused", folder, options.rounds)
            if both := [name for name in BOTH_ALLOCATORS if name in ids]:
                status |= measure(both, "default", folder, options.rounds)
        Console(width=None if sys.stdout.isatty() else 160).print(table(folder))
    return status


if __name__ == "__main__":
    sys.exit(main())
