"""``sca bench``: what channel sparsity gains on this machine, beside the peers."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import reported
from .terminal import terminal
from .train import free_folder

if TYPE_CHECKING:
    from ..bench import BenchConfig

# Options that are left out keep the defaults of BenchConfig; lists are separated by commas.


def _option(help_text: str, **constraints: Any) -> Any:
    return typer.Option(help=help_text, show_default=False, **constraints)


@reported
def bench(
    context: typer.Context,
    model: Annotated[str | None, _option("vgg9 (default), vgg16, resnet18, ...: as in sca train.")] = None,
    width: Annotated[float | None, _option("Factor on the model's hidden widths.")] = None,
    in_channels: Annotated[int | None, _option("Channels of the images (3).")] = None,
    size: Annotated[int | None, _option("Side of the images in pixels (32).")] = None,
    time_steps: Annotated[str | None, _option("T (4), or a list to scale over: 1,2,4,8,16,32.")] = None,
    batch_size: Annotated[str | None, _option("Images per step (16), or a list to scale over.")] = None,
    densities: Annotated[str | None, _option("Shares of active channels (1,0.5,0.3); 1 is always measured.")] = None,
    mode: Annotated[str | None, _option("training, inference or both (training,inference).")] = None,
    peers: Annotated[str | None, _option("spikingjelly, snntorch, both (default) or none.")] = None,
    round_to: Annotated[int | None, _option("Round a layer's active channels to a multiple (16).")] = None,
    rounds: Annotated[int | None, _option("Turns of each party (15).")] = None,
    precision: Annotated[str | None, _option("float32 (default) or bfloat16.")] = None,
    device: Annotated[str | None, _option("Torch device (cpu).")] = None,
    seed: Annotated[int | None, _option("Of everything random.")] = None,
    out: Annotated[Path | None, _option("Folder for bench.json and bench.png; runs/bench-<model>-<number>.")] = None,
) -> None:
    """Throughput and peak memory of a network at several densities and of the peers' same network.

    All in turn in one process, after warm-up. With several values of --time-steps or --batch-size: how time and memory
    grow with it.
    """
    given = {name: value for name, value in context.params.items() if value is not None}
    if context.invoked_subcommand is not None:
        if given:
            raise ValueError(f"{next(iter(given))}: expected behind {context.invoked_subcommand}, whose option it is")
        return
    lists = {
        "time_steps": _split("time_steps", time_steps, int),
        "batch_size": _split("batch_size", batch_size, int),
        "densities": _split("densities", densities, float),
        "modes": _split("mode", mode, str),
        "peers": () if peers == "none" else _split("peers", peers, str),
    }
    single = {
        "model": model,
        "width": width,
        "in_channels": in_channels,
        "size": size,
        "round_to": round_to,
        "rounds": rounds,
        "precision": precision,
        "device": device,
        "seed": seed,
    }
    _bench({name: value for name, value in (lists | single).items() if value is not None}, out)


def _bench(options: dict[str, Any], out: Path | None) -> None:
    # Before torch is loaded: its profiler, which counts allocations, else announces every use of it on stderr.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    from ..bench import BenchConfig

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


def _split(option: str, text: str | None, kind: Callable[[str], Any]) -> tuple[Any, ...] | None:
    """The values of a list; None where the option was left out."""
    if text is None:
        return None
    try:
        return tuple(kind(part.strip()) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"{option}: expected numbers separated by commas, got {text!r}") from error


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
