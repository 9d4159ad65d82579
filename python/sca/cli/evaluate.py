"""``sca eval``: accuracy of a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import reported

Source = Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN")]
MAX = 2**31 - 1  # of a number of things
BatchSize = Annotated[int, typer.Option(min=1, max=MAX)]
DataDir = Annotated[Path | None, typer.Option(help="Folder of the data, if not that of the run.")]


@reported
def evaluate(run: Source, data_dir: DataDir = None, batch_size: BatchSize = 256) -> None:
    """Test accuracy of a run's compacted network, or of its checkpoint while it is not finished."""
    from ..training import load_model
    from ..training.metrics import accuracy
    from .load import load_run

    model, dataset, config = load_run(run, data_dir, load_model)
    share = accuracy(model, dataset.test_batches(batch_size), config.precision)
    typer.echo(f"test accuracy {100 * share:.2f} % of {len(dataset.test)} images")
