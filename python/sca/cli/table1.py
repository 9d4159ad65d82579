"""``sca bench table1``: the paper's comparison of pruning criteria."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..experiments.table1.config import Table1Config
from ..training.config import PRESETS, TrainConfig
from .bench import writable
from .errors import reported
from .options import option, options_of
from .terminal import sentences, terminal
from .train import Assignments, ConfigFile, PresetName, free_folder

# Fields of the recipe that have an option of their own here; --set reaches all.
_RECIPE = ("data", "data_dir", "limit_train", "limit_test", "model", "width", "epochs", "device")
# What makes a table in minutes on two cores, unless a preset or a file says what is trained; the data's own preset may
# name another network.
_SHORT = {"model": "vgg9", "width": 0.25, "epochs": 8, "allocation": "global"}


@reported
@options_of(TrainConfig, "changes", only=_RECIPE, panels={"Recipe": TrainConfig})
@options_of(Table1Config, "compared", only=("connectivities", "criteria", "seeds"), shows_defaults=True)
def table1(
    changes: dict[str, Any],
    compared: dict[str, Any],
    preset: PresetName = None,
    config: ConfigFile = None,
    setting: Assignments = None,
    out: Annotated[
        Path | None, option("Folder of all runs, table1.json, .csv, .tex and .png; runs/table1-<data>-<number>.")
    ] = None,
) -> None:
    """Accuracy against connectivity: what each criterion prunes, beside the dense network and published numbers.

    Model, width and length are those of a quick look, unless --preset or --config says what is trained; data is digits,
    or cifar10 with --data-dir. Every cell is a training run in a folder of its own. Called again with the same --out,
    it goes on: finished cells are not run again, the interrupted one resumes.
    """
    if "data" not in changes and "data_dir" in changes:
        changes["data"] = "cifar10"
    _table1(changes, preset, config, setting or (), compared, out)


def _table1(
    changes: dict[str, Any],
    preset: str | None,
    file: Path | None,
    assignments: Sequence[str],
    compared: dict[str, Any],
    out: Path | None,
) -> None:
    from ..training import Recipe, Trainer, load_data

    short = {} if preset or file else _SHORT
    if "model" in PRESETS.get(str(changes.get("data")), {}):
        short = {name: value for name, value in short.items() if name != "model"}
    recipe = Recipe(preset, file, assignments, changes)
    with recipe.located():
        table = Table1Config(recipe.config(short), **compared)
        # the farthest cut, so that what is out of reach is told before hours of training
        farthest = min(table.cells(), key=lambda cell: cell.connectivity)
        Trainer.from_config(farthest.config, load_data(farthest.config))
    with writable(out or free_folder(Path("runs"), f"table1-{table.recipe.data}")) as folder:
        _filled(table, folder, out is not None)


def _filled(table: Table1Config, folder: Path, named: bool) -> None:
    """Run what is missing in the table's folder, which ``named`` says the command names."""
    import sca_kernels

    from ..bench.peers import installed
    from ..experiments.table1 import plot, results, run_cell, tables, write_tables
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
