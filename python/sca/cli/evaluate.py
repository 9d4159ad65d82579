"""``sca eval``: accuracy of a trained network, measured, beside what its run says of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import reported
from .terminal import sentences, terminal

if TYPE_CHECKING:
    from ..data import Dataset
    from ..training import TrainConfig

Source = Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN")]
MAX = 2**31 - 1  # of a number of things
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, max=MAX, help="Images at a time, if not as many as the run took.", show_default=False),
]
DataDir = Annotated[Path | None, typer.Option(help="Folder of the data, if not that of the run.")]


@reported
def evaluate(run: Source, data_dir: DataDir = None, batch_size: BatchSize = None) -> None:
    """Test accuracy of a run's compacted network, or of its checkpoint while it is not finished.

    Below it the table that the run ended with, connectivity, SynOps and energy in it. While the run is not finished,
    and with --data-dir, these are measured as well.
    """
    from ..report.comparison import table
    from ..report.runs import read_summary
    from ..training import load_model
    from ..training.evaluation import measure_accuracy
    from .load import load_run

    model, dataset, config = load_run(run, data_dir, load_model)
    stored = read_summary(run)
    accuracy = measure_accuracy(model, dataset, config, batch_size)
    told = f"test accuracy {100 * accuracy:.2f} % of {len(dataset.test)} {dataset.noun}, measured now"
    if stored is not None:
        at_end = stored["compacted"]["accuracy"]
        same = accuracy == at_end
        told += "; as at the end of the run" if same else f"; not the {100 * at_end:.2f} % of the end of the run"
    console = terminal()
    sentences(console)(told)
    if stored is not None and data_dir is None:
        console.print(table(stored))
    else:
        column, notes = _measured(run, dataset, config, batch_size)
        summary = {"dense": None, "compacted": {"accuracy": accuracy, **column}, "notes": notes}
        console.print(table(summary, alone="as it stands"))


def _measured(
    run: Path, dataset: Dataset, config: TrainConfig, batch_size: int | None
) -> tuple[dict[str, Any], list[str]]:
    """What the run's network costs as its checkpoint holds it, and what that was counted on."""
    from ..cost import density
    from ..report.comparison import MEANINGS
    from ..structure.groups import find_groups
    from ..training import load_pruned
    from ..training.evaluation import count_cost, counted_on

    try:
        model = load_pruned(run).to(config.device)
    except FileNotFoundError:
        return {}, [counted_on(dataset, None), "the run has no checkpoint to count costs on"]
    cost = count_cost(model, dataset, config, batch_size)
    column = {
        "density": density(members.group for members in find_groups(model).values()),
        "connectivity": cost.connectivity,
        "parameters": cost.active_parameters,
        "synops": cost.synops,
        "energy_pj": cost.energy_pj,
    }
    return column, [counted_on(dataset, cost), MEANINGS]
