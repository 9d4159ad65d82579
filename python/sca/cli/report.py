"""``sca report``: runs as a page of figures and tables, and what a single one's network costs, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import reported
from .evaluate import DataDir

if TYPE_CHECKING:
    from rich.console import Console


@reported
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs.", metavar="RUN")],
    out: Annotated[
        Path | None,
        typer.Option(help="HTML file; RUN/report.html for one run, report.html for several when left out."),
    ] = None,
    data_dir: DataDir = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    max_batches: Annotated[int | None, typer.Option(min=1, help="Count on so many batches only.")] = None,
) -> None:
    """Write one HTML page on a run or on several: figures, tables, settings, and a conclusion in words.

    For a single run also prints parameters, connectivity, operations and energy of its compacted network, layer by
    layer, counted on the test images.
    """
    from rich.console import Console

    from ..report.html import page
    from ..report.runs import read_runs
    from ..training.files import write_whole

    content = page(read_runs(runs)).encode()
    path = out or (runs[0] if len(runs) == 1 else Path()) / "report.html"
    try:
        write_whole(path, content)
    except OSError as error:
        raise ValueError(f"out: expected a file to write to, got {path} ({error.strerror})") from error
    console = Console()
    console.print(f"report in {path}", highlight=False, soft_wrap=True)
    if len(runs) == 1:
        _print_cost(console, runs[0], data_dir, batch_size, max_batches)


def _print_cost(console: Console, run: Path, data_dir: Path | None, batch_size: int, max_batches: int | None) -> None:
    from ..report import report_cost
    from .load import load_run

    try:
        model, dataset = load_run(run, data_dir)
    except FileNotFoundError:
        console.print("no cost of layers: the run has written no checkpoint yet")
        return
    console.print(report_cost(model, dataset.test_batches(batch_size), max_batches=max_batches).table())
