"""``sca train``: train, prune while training, compact, compare."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer

from ..training.config import (
    PRESETS,
    DataSettings,
    FrameSettings,
    NetworkSettings,
    PruningSettings,
    TrainConfig,
    TrainingSettings,
)
from .errors import reported
from .options import option, options_of
from .terminal import sentences, terminal

PANELS = {
    "Data": DataSettings,
    "Event cameras": FrameSettings,
    "Network": NetworkSettings,
    "Training": TrainingSettings,
    "Pruning": PruningSettings,
    "Run": TrainConfig,
}
PresetName = Annotated[
    str | None, option(f"{', '.join(PRESETS)}; left out, that of the data if there is one, else fast.")
]
ConfigFile = Annotated[Path | None, option("TOML file with fields of the configuration, or the config.json of a run.")]
Assignments = Annotated[
    list[str] | None,
    option("field=value: any field, also as neuron_arguments.tau=2.0; may be repeated.", "--set"),
]


@reported
@options_of(TrainConfig, "changes", panels=PANELS)
def train(
    changes: dict[str, Any],
    preset: PresetName = None,
    config: ConfigFile = None,
    setting: Assignments = None,
    out: Annotated[Path | None, option("Folder of the run; runs/<data>-<model>-<number> when left out.")] = None,
    resume: Annotated[bool, option("Go on with the run in --out.", "--resume")] = False,
    overwrite: Annotated[bool, option("Replace the run in --out.", "--overwrite")] = False,
    show_config: Annotated[
        bool, option("Print the whole configuration as JSON, for --config, and end.", "--show-config")
    ] = False,
    list_names: Annotated[
        bool, option("Print the names of models, data sets, criteria, ..., and end.", "--list")
    ] = False,
) -> None:
    """Train a spiking network, prune it while it learns, and compare it with the dense one.

    Options left out come from --config, and what that leaves out from the preset. "none" stands for none where a value
    may be left out. Ctrl-C writes a checkpoint and ends; --resume goes on from it.
    """
    if list_names:
        _list()
        return
    if resume and (overwrite or preset or config or out is None):
        raise ValueError("resume: expected --out and neither --overwrite, --preset nor --config beside it")
    _train(changes, preset, config, setting or (), out, resume, overwrite, show_config)


def _list() -> None:
    from rich.table import Table

    from .names import named_settings

    console = terminal()
    say = sentences(console)
    for name, meaning, entries in named_settings():
        say(f"{name}: {meaning}")
        table = Table.grid(padding=(0, 2))
        for told in dict.fromkeys(entries.values()):
            table.add_row("", ", ".join(entry for entry in entries if entries[entry] == told), told)
        console.print(table)


def _train(
    changes: dict[str, Any],
    preset: str | None,
    file: Path | None,
    assignments: Sequence[str],
    out: Path | None,
    resume: bool,
    overwrite: bool,
    show_config: bool,
) -> None:
    from ..files import as_json
    from ..training import Recipe, RunFolder

    recipe = Recipe(preset, file, assignments, changes)
    with recipe.located():
        resolved = _resumed_config(RunFolder.stored_config(out), recipe, out) if resume else recipe.config()
        if show_config:
            typer.echo(as_json(resolved.to_dict()), nl=False)
        else:
            _run(resolved, out, "resume" if resume else "overwrite" if overwrite else "new")


def _run(config: Any, out: Path | None, mode: str) -> None:
    import sca_kernels

    from ..training import RunFolder, joined, run
    from .display import Display
    from .endings import told

    sca_kernels.reuse_host_memory()
    sca_kernels.share_cores()
    with contextlib.ExitStack() as stack:
        ending = stack.enter_context(told())
        ranks = stack.enter_context(joined(config.device))
        console = terminal(quiet=not ranks.is_first)
        say = sentences(console)
        folder = None
        if ranks.is_first:
            path = out or free_folder(Path("runs"), f"{config.data}-{config.model}")
            folder = ending.folder = stack.enter_context(RunFolder(path, mode))
        else:
            logging.getLogger().setLevel(logging.ERROR)  # the first process warns for all
        display = stack.enter_context(Display(console))
        summary = run(config, folder, display, ranks)
    if summary is not None:
        console.print(summary.table())
        picture = f"{folder.plot.name}, " if folder.plot.exists() else ""
        say(f"in {path}: {picture}{folder.log.name}, {folder.model.name} (the compacted network)")
        say(f"as a page with figures: sca report {shlex.quote(str(path))}")


def _resumed_config(held: Any, recipe: Any, out: Path) -> Any:
    """The stored configuration; where files lie and what computes may change, and there may be more epochs."""
    from ..training import RunFolder

    if held is None:
        raise ValueError(f"out: {out} holds no run to resume")
    config = recipe.over(held)
    RunFolder.check_resumption(out, held, config)
    return config


def free_folder(parent: Path, stem: str) -> Path:
    """The first ``stem-number`` that does not exist yet."""
    return next(path for number in count(1) if not (path := parent / f"{stem}-{number}").exists())
