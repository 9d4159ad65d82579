"""The command ``sca``: one file per command. They import torch and the rest when they run, so that help is quick."""

from __future__ import annotations

import logging

import typer

from .bench import bench, bench_convert
from .convert import convert
from .doctor import doctor
from .evaluate import evaluate
from .report import report
from .table1 import table1
from .terminal import use_any_encoding
from .train import train

__all__ = ["app", "main"]

app = typer.Typer(
    help="Train spiking networks, prune them while they learn, and see what that gained.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("train")(train)
app.command("eval")(evaluate)
app.command("report")(report)
benches = typer.Typer(invoke_without_command=True, add_completion=False)
benches.callback()(bench)
benches.command("table1")(table1)
benches.command("convert")(bench_convert)
app.add_typer(benches, name="bench")
app.command("convert")(convert)
app.command("doctor")(doctor)


def main() -> None:
    """Entry point of the console script."""
    use_any_encoding()
    logging.basicConfig(format="%(levelname)s: %(message)s")
    app()
