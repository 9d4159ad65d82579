"""``sca bench``: what channel sparsity gains on this machine, beside the peers."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..bench.config import BenchConfig
from .errors import reported
from .options import option, options_of
from .terminal import terminal
from .train import free_folder


@reported
@options_of(BenchConfig, "settings", old_names={"modes": "--mode"}, shows_defaults=True)
def bench(
    context: typer.Context,
    settings: dict[str, Any],
    out: Annotated[Path | None, option("Folder for bench.json and bench.png; runs/bench-<model>-<number>.")] = None,
) -> None:
    """Throughput and peak memory of a network at several densities and of the peers' same network.

    All in turn in one process, after warm-up. With several values of --time-steps or --batch-size: how time and memory
    grow with it.
    """
    if context.invoked_subcommand is None:
        _bench(settings, out)
        return
    given = [name for name, value in context.params.items() if value is not None]
    if given:
        raise ValueError(f"{given[0]}: expected behind {context.invoked_subcommand}, whose option it is")


def _bench(options: dict[str, Any], out: Path | None) -> None:
    # Before torch is loaded: its profiler, which counts allocations, else announces every use of it on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    config = BenchConfig(**options)
    with writable(out or free_folder(Path("runs"), f"bench-{config.model}")) as folder:
        _measured(config, folder)


def _measured(config: BenchConfig, folder: Path) -> None:
    import sca_kernels

    from ..bench import measure, plot, table
    from ..bench.peers import installed
    from ..files import write_json

    sca_kernels.reuse_host_memory()
    console = terminal()
    command = shlex.join(["sca", *sys.argv[1:]])
    with console.status("") as status:
        result = measure(config, command, status.update)
    write_json(folder / "bench.json", result)
    console.print(table(result))
    picture = "no picture: matplotlib is not installed (pip install 'sca_kernels[train]')"
    if installed("matplotlib"):
        plot(folder / "bench.png", result)
        picture = "bench.png"
    console.print(f"in {folder}: bench.json, {picture}", soft_wrap=True)


@reported
def bench_convert(
    out: Annotated[Path | None, option("Folder for convert.json and convert.png; runs/bench-convert-<number>.")] = None,
) -> None:
    """Networks of SpikingJelly, snnTorch and norse against what sca.convert makes of them.

    Times in turn, memory, spikes that differ, and a training step with 40 % of the channels. What is not installed is
    not measured.
    """
    import sca_kernels

    from ..bench.conditions import conditions
    from ..bench.foreign import measure_foreign, plot_foreign, table_of_foreign
    from ..bench.peers import installed
    from ..files import write_json

    sca_kernels.reuse_host_memory()
    with writable(out or free_folder(Path("runs"), "bench-convert")) as folder:
        console = terminal()
        told = conditions(shlex.join(["sca", *sys.argv[1:]]))
        with console.status("") as status:
            rows = measure_foreign(status.update)
        write_json(folder / "convert.json", {"conditions": told, "networks": rows})
        console.print(table_of_foreign(rows))
        picture = "no picture: matplotlib is not installed (pip install 'sca_kernels[train]')"
        if all("note" in row for row in rows):
            picture = "no picture: nothing was measured"
        elif installed("matplotlib"):
            plot_foreign(folder / "convert.png", rows)
            picture = "convert.png"
        console.print(f"in {folder}: convert.json, {picture}", soft_wrap=True)


@contextlib.contextmanager
def writable(folder: Path) -> Iterator[Path]:
    """The folder, made when missing, after a file could be made in it; what was made and stays empty goes again."""
    made: list[Path] = []
    try:
        made += [one for one in (folder, *folder.parents) if not one.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"out: expected a folder to write to, got {folder} ({error.strerror})") from error
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            for one in made:
                one.rmdir()
