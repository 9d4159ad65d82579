"""``sca report``: what a trained network costs, layer by layer."""

from __future__ import annotations

from typing import Annotated

import typer

from .errors import reported
from .evaluate import DataDir, Source


@reported
def report(
    run: Source,
    data_dir: DataDir = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 256,
    max_batches: Annotated[int | None, typer.Option(min=1, help="Count on so many batches only.")] = None,
) -> None:
    """Parameters, connectivity, operations and energy of a run's compacted network, counted on the test images."""
    from rich.console import Console

    from ..report import report_cost
    from .load import load_run

    model, dataset = load_run(run, data_dir)
    Console().print(report_cost(model, dataset.test_batches(batch_size), max_batches=max_batches).table())
