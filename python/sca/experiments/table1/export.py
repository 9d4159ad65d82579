"""The table for papers and spreadsheets: LaTeX and CSV of the same results as in the terminal."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from ...files import write_whole
from .report import HEAD, blocks, published_cells, title

__all__ = ["as_csv", "as_latex", "write_tables"]

# Each sign that is a command to LaTeX, and each of ours that its oldest encoding lacks.
_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "_": r"\_",
    "%": r"\%",
    "&": r"\&",
    "#": r"\#",
    "$": r"\$",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # behind the end of a line it would be an argument
    "±": r"$\pm$",
}
_FIGURES = ("accuracy", "connectivity", "synops_kept")


def write_tables(folder: Path, result: dict[str, Any]) -> list[str]:
    """Write ``table1.tex`` and ``table1.csv`` into the folder.

    Args:
        folder: there is one.
        result: of :func:`sca.experiments.table1.results`.

    Returns:
        The names of the files.

    Raises:
        OSError: a file can't be written.
    """
    texts = {"table1.csv": as_csv(result), "table1.tex": as_latex(result)}
    for name, text in texts.items():
        write_whole(folder / name, text.encode())
    return list(texts)


def as_csv(result: dict[str, Any]) -> str:
    """A line for each criterion and connectivity, in full precision: shares as they are stored, not in %. A deviation
    of one seed alone is empty."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["criterion", "asked", "seeds", *(f"{name}_{part}" for name in _FIGURES for part in ("mean", "std"))])
    for row in result["rows"]:
        figures = [row[name][part] for name in _FIGURES for part in ("mean", "std")]
        rows.writerow([row["criterion"], row["asked"], len(row["seeds"]), *figures])
    return text.getvalue()


def as_latex(result: dict[str, Any]) -> str:
    """A ``tabular`` with the rules of booktabs: ours, then what was published on the same data set."""
    columns = len(HEAD)
    lines = [
        r"% needs \usepackage{booktabs}",
        f"% {_one_line(title(result))}; compacted networks, in %: mean and standard deviation over the seeds;",
        "% connectivity and SynOps are shares of the same seed's dense network",
        rf"\begin{{tabular}}{{l{'r' * (columns - 1)}}}",
        r"\toprule",
        _row(HEAD),
    ]
    for rows in blocks(result):
        lines += [r"\midrule", *map(_row, rows)]
    published = published_cells(result)
    if published:
        lines += [r"\midrule", rf"\multicolumn{{{columns}}}{{l}}{{published, at full width on all images}} \\"]
    for network, time_steps, method, connectivity, accuracy, synops in published:
        name = f"{network}, T = {time_steps}, {method}"
        shares = [share.removesuffix("%") for share in (connectivity, accuracy, synops)]
        lines.append(_row([name, "", *shares, ""]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return " & ".join(map(_escaped, cells)) + r" \\"


def _escaped(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(_LATEX.get(sign, sign) for sign in _one_line(text))


def _one_line(text: str) -> str:
    return " ".join(text.split())
