"""Bad input ends a command with one line and exit code 2; bugs keep their traceback."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import typer

from .terminal import complain


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """Print the message of a ValueError, OSError or ImportError instead of a traceback (exit code 2), and that of an
    error about too little memory (1)."""

    @functools.wraps(command)
    def wrapper(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except (ValueError, OSError, ImportError) as error:
            fail(str(error))
            raise typer.Exit(2) from error
        except (MemoryError, RuntimeError) as error:
            if not is_about_memory(error):
                raise
            fail(memory_sentence(error))
            raise typer.Exit(1) from error

    return wrapper


def is_about_memory(error: BaseException) -> bool:
    """Whether it says that there is too little, on the CPU (where torch has no kind of its own for that) or a GPU."""
    lacks = "DefaultCPUAllocator", "not enough memory", "Storage size calculation overflowed"
    kinds = "OutOfMemoryError", "MemoryError"  # by name: torch may not have been loaded
    return type(error).__name__ in kinds or any(words in str(error) for words in lacks)


def memory_sentence(error: BaseException) -> str:
    """What to do about it."""
    (reason, *_) = str(error).splitlines() or [type(error).__name__]
    return f"out of memory ({reason}): take fewer images at a time, fewer time steps or a smaller width"


def fail(message: str) -> None:
    """Print an error; in one process of several (torchrun), say of which."""
    rank = os.environ.get("RANK") if os.environ.get("WORLD_SIZE", "1") != "1" else None
    complain(f"{'' if rank is None else f'rank {rank}: '}error: {message}")
