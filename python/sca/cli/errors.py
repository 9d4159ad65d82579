"""Bad input ends a command with one line and exit code 2; bugs keep their traceback."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import typer

from .terminal import colour


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """Print the message of a ValueError, OSError or ImportError instead of a traceback."""

    @functools.wraps(command)
    def wrapper(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except (ValueError, OSError, ImportError) as error:
            fail(str(error))
            raise typer.Exit(2) from error

    return wrapper


def fail(message: str) -> None:
    """Print an error; in one process of several (torchrun), say of which."""
    rank = os.environ.get("RANK") if os.environ.get("WORLD_SIZE", "1") != "1" else None
    typer.secho(f"{'' if rank is None else f'rank {rank}: '}error: {message}", err=True, fg=colour("red"))
