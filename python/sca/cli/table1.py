"""``sca bench table1``: the paper's comparison of pruning criteria."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .bench import _option, _split, writable
from .errors import reported
from .terminal import sentences, terminal
from .train import free_folder

if TYPE_CHECKING:
    from ..experiments.table1 import Table1Config

# What makes a table in minutes on two cores, unless a preset or a file says what is trained.
_SHORT = {"model": "vgg9", "width": 0.25, "epochs": 8, "allocation": "global"}


@reported
def table1(
    data: Annotated[str | None, _option("digits (default), cifar10 (default with --data-dir) or cifar100.")] = None,
    data_dir: Annotated[str | None, _option("Folder of the CIFAR files.")] = None,
    model: Annotated[str | None, _option("vgg9 (default without --preset and --config), vgg16, resnet18, ...")] = None,
    width: Annotated[float | None, _option("Factor on the model's hidden widths (0.25).")] = None,
    epochs: Annotated[int | None, _option("Length of each run (8).")] = None,
    connectivities: Annotated[str | None, _option("Shares of weights kept (0.2839,0.0931).")] = None,
    criteria: Annotated[
        str | None,
        _option("Some of sca,rate,weight_l1,bn_gamma,random, also as sca-without-regrowth (these six)."),
    ] = None,
    seeds: Annotated[int | None, _option("Runs of each cell (3).")] = None,
    preset: Annotated[str | None, _option("As in sca train.")] = None,
    config: Annotated[Path | None, _option("As in sca train.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="field=value, as in sca train.", show_default=False)
    ] = None,
    device: Annotated[str | None, _option("Torch device (cpu).")] = None,
    limit_train: Annotated[int | None, _option("Use the first training images only.")] = None,
    limit_test: Annotated[int | None, _option("Use the first test images only.")] = None,
    out: Annotated[
        Path | None, _option("Folder of all runs, table1.json and table1.png; runs/table1-<data>-<number>.")
    ] = None,
) -> None:
    """Accuracy against connectivity: what each criterion prunes, beside the dense network and published numbers.

    Model, width and length are those of a quick look, unless --preset or --config says what is trained.
    Every cell is a training run in a folder of its own. Called again with the same --out, it goes on: finished cells
    are not run again, the interrupted one resumes.
    """
    if data is None and data_dir is not None:
        data = "cifar10"
    fields = ("data", "data_dir", "model", "width", "epochs", "device", "limit_train", "limit_test")
    given = locals()
    changes = {name: given[name] for name in fields if given[name] is not None}
    lists = {
        "connectivities": _split("connectivities", connectivities, float),
        "criteria": _split("criteria", criteria, str),
        "seeds": seeds,
    }
    _table1(changes, preset, config, setting, {name: v for name, v in lists.items() if v is not None}, out)


def _table1(
    changes: dict[str, Any],
    preset: str | None,
    config: Path | None,
    setting: list[str] | None,
    options: dict[str, Any],
    out: Path | None,
) -> None:
    from ..experiments.table1 import Table1Config
    from ..training import Recipe, Trainer, load_data

    short = {} if preset or config else _SHORT
    recipe = Recipe(preset, config, setting or (), changes)
    with recipe.located():
        table = Table1Config(recipe.config(short), **options)
        # the farthest cut, so that what is out of reach is told before hours of training
        farthest = min(table.cells(), key=lambda cell: cell.connectivity)
        Trainer(farthest.config, load_data(farthest.config))
    with writable(out or free_folder(Path("runs"), f"table1-{table.recipe.data}")) as folder:
        _filled(table, folder, out is not None)


def _filled(table: Table1Config, folder: Path, named: bool) -> None:
    """Run what is missing in the table's folder, which ``named`` says the command names."""
    import sca_kernels

    from ..bench.peers import installed
    from ..experiments.table1 import plot, results, run_cell, tables
    from ..experiments.table1.export import write_tables
    from ..files import write_json
    from ..training import Interrupted
    from .cells import CellsDisplay

    cells = list(table.cells())
    finished = [(cell, summary) for cell in cells if (summary := cell.summary(folder))]
    sca_kernels.reuse_host_memory()
    sca_kernels.share_cores()
    console = terminal()
    say = sentences(console)
    command = shlex.join(["sca", *sys.argv[1:]])
    if finished:
        say(f"{len(finished)} of {len(cells)} cells are finished in {folder}")
    known = {cell.folder for cell, _ in finished}
    with CellsDisplay(console, len(cells)) as display:
        for number, cell in enumerate(cells, 1):
            if cell.folder in known:
                continue
            display.begin(number, cell)
            try:
                run_cell(cell, folder, display)
            except Interrupted:
                display.close()
                again = command if named else f"{command} --out {shlex.quote(str(folder))}"
                say(f"interrupted; go on with: {again}")
                raise typer.Exit(130) from None
            finished.append((cell, cell.summary(folder)))
            display.end(cell, finished[-1][1])
            write_json(folder / "table1.json", results(table, finished, command))
    result = results(table, finished, command)
    write_json(folder / "table1.json", result)
    console.print(tables(result))
    files = ", ".join(["table1.json", *write_tables(folder, result)])
    picture = "no picture: matplotlib is not installed (pip install 'sca_kernels[train]')"
    if installed("matplotlib"):
        plot(folder / "table1.png", result)
        picture = "table1.png"
    say(f"in {folder}: {files}, {picture}, a folder for each run")
