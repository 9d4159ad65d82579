"""``sca report``: runs as a page of figures and tables, and what a single one's network costs, layer by layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import reported
from .evaluate import MAX, BatchSize, DataDir
from .terminal import sentences, terminal

if TYPE_CHECKING:
    from ..report.runs import Run


@reported
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.", metavar="RUN")],
    out: Annotated[
        Path | None,
        typer.Option(help="HTML file; RUN/report.html for one run, report.html for several when left out."),
    ] = None,
    data_dir: DataDir = None,
    batch_size: BatchSize = None,
    max_batches: Annotated[int | None, typer.Option(min=1, max=MAX, help="Count on so many batches only.")] = None,
) -> None:
    """Write one HTML page on a run or on several: figures, tables, settings, and a conclusion in words.

    For a single run also prints the table that it ended with, and parameters, connectivity, operations and energy of
    its pruned network, layer by layer: as the run counted them at its end, or, while it is not finished and with
    --data-dir or --max-batches, as its checkpoint counts now on the test images, on the page as in the terminal.
    """
    from ..report.comparison import table
    from ..report.cost import table as cost_table
    from ..report.runs import read_runs

    read = read_runs(runs)
    path = out or (runs[0] if len(runs) == 1 else Path()) / "report.html"
    console = terminal()
    try:
        if len(read) == 1 and (read[0].cost is None or data_dir is not None or max_batches is not None):
            read = [_counted(read[0], runs[0], data_dir, batch_size, max_batches)]
    finally:  # without these costs, where its data are elsewhere, say
        _write(path, read)
        sentences(console)(f"report in {path}")
    if len(read) > 1:
        return
    run = read[0]
    if run.summary is not None:
        console.print(table(run.summary))
    if run.cost is None:
        there = "has written no checkpoint yet" if run.summary is None else "has no checkpoint to count on"
        console.print(f"no cost of layers: the run {there}")
    else:
        console.print(cost_table(run.cost))


def _write(path: Path, runs: list[Run]) -> None:
    from ..files import write_whole
    from ..report.html import page

    content = page(runs).encode(errors="replace")  # a folder's name need not be text
    try:
        write_whole(path, content)
    except OSError as error:
        raise ValueError(f"out: expected a file to write to, got {path} ({error.strerror})") from error


def _counted(run: Run, path: Path, data_dir: Path | None, batch_size: int | None, max_batches: int | None) -> Run:
    """The run with its costs as its checkpoint counts now; without any where it has no checkpoint."""
    from ..training import load_pruned
    from ..training.evaluation import count_cost
    from .load import load_run

    try:
        model, dataset, config = load_run(path, data_dir, load_pruned)
    except FileNotFoundError:
        return replace(run, cost=None)
    return replace(run, cost=count_cost(model, dataset, config, batch_size, max_batches))
