"""Options of a command that are the fields of a configuration: of their names, order, types and meaning."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from types import NoneType
from typing import Annotated, Any

import typer

from ..settings import Setting, settings, summary

Command = Callable[..., None]


def option(help_text: str, *names: str, **shown: Any) -> Any:
    """An option whose default is not shown: where it is left out, others decide."""
    return typer.Option(*names, help=help_text, show_default=False, **shown)


def options_of(
    config: type,
    parameter: str,
    only: Collection[str] | None = None,
    panels: Mapping[str, type] | None = None,
    old_names: Mapping[str, str] | None = None,
    shows_defaults: bool = False,
) -> Callable[[Command], Command]:
    """Give a command an option for each field of a configuration but tables, which ``--set`` reaches.

    Args:
        config: a dataclass of :mod:`sca.settings`.
        parameter: of the command: a dict of the fields that were given, and their values.
        only: fields that get an option.
        panels: heading in the help -> class that declares the fields below it, or inherits them before others do.
        old_names: field -> another name of its option.
        shows_defaults: whether the help tells the fields' defaults.
    """
    chosen = {
        name: each
        for name, each in settings(config).items()
        if dict not in each.kinds and (only is None or name in only)
    }

    def declared(each: Setting) -> inspect.Parameter:
        default = _default(each) if shows_defaults else ""
        told = option(
            f"{summary(each.doc)} Default: {default}." if default else summary(each.doc),
            *_flags(each, old_names or {}),
            metavar=_metavar(each),
            rich_help_panel=next(
                (title for title, part in (panels or {}).items() if issubclass(part, each.owner)), None
            ),
        )
        annotation = Annotated[(bool if bool in each.kinds else str) | None, told]
        return inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapper(**given: Any) -> None:
            values = {name: value for name in chosen if (value := given.pop(name)) is not None}
            parsed = {name: chosen[name].parsed(v) if isinstance(v, str) else v for name, v in values.items()}
            command(**given, **{parameter: parsed})

        own = [each for each in inspect.signature(command, eval_str=True).parameters.values() if each.name != parameter]
        parameters = [
            *map(declared, chosen.values()),
            *(each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own),
        ]
        wrapper.__signature__ = inspect.Signature(parameters)
        wrapper.__annotations__ = {each.name: each.annotation for each in parameters}
        return wrapper

    return decorate


def _flags(each: Setting, old_names: Mapping[str, str]) -> Iterator[str]:
    """``--name``; of what is true by default, with its contrary."""
    name = each.name.replace("_", "-")
    yield f"--{name}/--no-{name}" if each.default is True else f"--{name}"
    if each.name in old_names:
        yield old_names[each.name]


def _metavar(each: Setting) -> str | None:
    """What is to stand behind it."""
    if bool in each.kinds:
        return None
    if each.items is not None:
        return f"<{each.items.__name__},...>"
    return next(f"<{kind.__name__}>" for kind in each.kinds if kind is not NoneType)


def _default(each: Setting) -> str:
    """As one would write it; nothing where each instance makes its own, or where it is none."""
    if each.default in (dataclasses.MISSING, None):
        return ""
    return ",".join(map(str, each.default)) if isinstance(each.default, tuple) else str(each.default)
