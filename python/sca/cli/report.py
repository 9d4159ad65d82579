"""``sca report``: runs as a page of figures and tables, and what a single one's network costs, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import reported
from .evaluate import MAX, BatchSize, DataDir
from .terminal import sentences, terminal

if TYPE_CHECKING:
    from ..report import CostReport


@reported
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.", metavar="RUN")],
    out: Annotated[
        Path | None,
        typer.Option(help="HTML file; RUN/report.html for one run, report.html for several when left out."),
    ] = None,
    data_dir: DataDir = None,
    batch_size: BatchSize = 256,
    max_batches: Annotated[int | None, typer.Option(min=1, max=MAX, help="Count on so many batches only.")] = None,
) -> None:
    """Write one HTML page on a run or on several: figures, tables, settings, and a conclusion in words.

    For a single run also prints parameters, connectivity, operations and energy of its pruned network, layer by layer:
    as the run counted them at its end, or, while it is not finished and with --data-dir or --max-batches, as its
    checkpoint counts now on the test images.
    """
    from ..files import write_whole
    from ..report.html import page
    from ..report.runs import read_runs

    read = read_runs(runs)
    content = page(read).encode(errors="replace")  # a folder's name need not be text
    path = out or (runs[0] if len(runs) == 1 else Path()) / "report.html"
    try:
        write_whole(path, content)
    except OSError as error:
        raise ValueError(f"out: expected a file to write to, got {path} ({error.strerror})") from error
    console = terminal()
    sentences(console)(f"report in {path}")
    if len(read) > 1:
        return
    cost = read[0].cost
    if cost is None or data_dir is not None or max_batches is not None:
        cost = _counted(runs[0], data_dir, batch_size, max_batches)
    if cost is None:
        there = "has written no checkpoint yet" if read[0].summary is None else "has no checkpoint to count on"
        console.print(f"no cost of layers: the run {there}")
    else:
        console.print(cost.table())


def _counted(run: Path, data_dir: Path | None, batch_size: int, max_batches: int | None) -> CostReport | None:
    """The cost of the run's network as its checkpoint holds it; None where there is none."""
    from ..report import report_cost
    from ..training import load_pruned
    from .load import load_run

    try:
        model, dataset, config = load_run(run, data_dir, load_pruned)
    except FileNotFoundError:
        return None
    return report_cost(model, dataset.test_batches(batch_size), config.time_steps, max_batches)
