"""What commands print to: text as it stands (a path may look like markup), whole in a pipe, in any encoding."""

from __future__ import annotations

import codecs
import functools
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

import typer

if TYPE_CHECKING:
    from rich.console import Console

#: Columns of what is no terminal: a table there is as wide as what it says, since nobody can widen a file.
PIPE_WIDTH = 1000

_ASCII = {"±": "+-", "µ": "u", "²": "^2", "×": "x", "…": "...", "·": "."}


def terminal(quiet: bool = False) -> Console:
    """A console on the standard output. It takes nothing for markup: what is printed holds paths and names of users."""
    from rich.console import Console

    console = Console(quiet=quiet, markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def sentences(console: Console) -> Callable[..., None]:
    """The function that prints a line of words, wherever it ends."""
    return functools.partial(console.print, soft_wrap=True)


def use_any_encoding() -> None:
    """Have the standard streams write what their encoding lacks as well as they can, in place of an error."""
    codecs.register_error("sca", _nearest)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="sca")


def complain(text: str) -> None:
    """Print a line on the standard error: red on a terminal, unless NO_COLOR is set."""
    is_red = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    write_line(typer.style(text, fg="red") if is_red else text, sys.stderr)


def write_line(text: str, stream: TextIO | None = None) -> None:
    """Write to the standard output, or to another stream. (typer.echo makes a stream of its own where the encoding is
    ASCII, in which names of files are lost.)"""
    (stream or sys.stdout).write(f"{text}\n")


def _nearest(error: UnicodeError) -> tuple[Any, int]:
    """Bytes of a file name that were not text as those bytes, known signs in ASCII, everything else as an escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign = error.object[error.start]
    if "\udc80" <= sign <= "\udcff":
        return bytes([ord(sign) - 0xDC00]), error.start + 1
    return _ASCII.get(sign) or sign.encode("ascii", "backslashreplace").decode(), error.start + 1
