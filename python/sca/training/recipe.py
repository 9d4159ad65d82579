"""Recipes: what a run is, put together from a preset, a file and single settings, each over the ones before."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any

from ..files import read_whole
from ..settings import NONE, literal, settings, tomllib
from .config import TrainConfig

__all__ = ["Recipe"]


class Recipe:
    """Fields of a :class:`TrainConfig`: those of a preset, over them those of a file, over them those given one by one.

    Args:
        preset: as in :meth:`TrainConfig.from_preset`; a TOML file may name it too, as ``preset``.
        file: TOML, with fields as keys (``neuron_arguments`` is a table, whose keys join those of the preset); or the
            ``config.json`` of a run, which holds all fields and takes no preset.
        settings: ``field=value``, also ``neuron_arguments.tau=2.0``.
        options: fields and their values.

    In a file and in settings, ``"none"`` is None for a field that may be None.

    Raises:
        ValueError: the file is not readable or not TOML (JSON), naming it and the line; a setting is not
            ``field=value``, or names what an option gives as well.
    """

    def __init__(
        self,
        preset: str | None = None,
        file: Path | None = None,
        settings: Sequence[str] = (),
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._file = file
        self._whole = file is not None and file.suffix == ".json"
        stored, self._lines = ({}, {}) if file is None else _read(file)
        if self._whole and preset is not None:
            raise ValueError(f"preset: expected none beside {file}, which holds all fields, got {preset!r}")
        named = stored.pop("preset", None)
        self._preset = preset or named
        self._stored = {name: _none(name, value) for name, value in stored.items()}
        self._given = dict(options or {})
        for setting in settings:
            self._set(setting)
        for name in self._given:
            self._lines.pop(name, None)

    def config(self, defaults: Mapping[str, Any] | None = None) -> TrainConfig:
        """What it says.

        Args:
            defaults: fields that go over the preset and under everything else; no tables.

        Raises:
            ValueError: unknown preset or field, or a value of another type or out of range.
        """
        if self._whole:
            return _over(TrainConfig.from_dict(self._stored), self._given)
        changes = {**(defaults or {}), **self._stored, **self._given}
        tables = {name: value for name, value in changes.items() if isinstance(value, dict)}
        preset = TrainConfig.from_preset(self._preset, **{n: v for n, v in changes.items() if n not in tables})
        return _over(_over(preset, _tables(self._stored)), _tables(self._given))

    def over(self, config: TrainConfig) -> TrainConfig:
        """``config`` with the settings and options.

        Raises:
            ValueError: unknown field, or a value of another type or out of range.
        """
        return _over(config, self._given)

    @contextmanager
    def located(self) -> Iterator[None]:
        """Have a ValueError about a field that the file sets begin with the file's name and the field's line."""
        try:
            yield
        except ValueError as error:
            line = self._lines.get(str(error).partition(":")[0])
            if line is None:
                raise
            raise ValueError(f"{self._file}, line {line}: {error}") from error

    def _set(self, setting: str) -> None:
        name, equals, text = (part.strip() for part in setting.partition("="))
        if not (name and equals):
            raise ValueError(f"set: expected field=value, got {setting!r}")
        if name in self._given:
            raise ValueError(f"{name}: given twice")
        name, dot, key = name.partition(".")
        if dot:
            value = _none_in_table(literal(text))
            self._given[name] = {**self._given.get(name, {}), key: value}
        else:
            field = settings(TrainConfig).get(name)
            self._given[name] = _none(name, text if field is None else field.parsed(text))


def _over(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """The config changed; entries of tables join those that it has."""
    joined = {
        name: {**getattr(config, name), **value} if isinstance(getattr(config, name, None), dict) else value
        for name, value in _tables(changes).items()
    }
    return config.changed(**{**changes, **joined})


def _tables(changes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: value for name, value in changes.items() if isinstance(value, dict)}


def _read(file: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The values in a file, and the line of each key."""
    if file.suffix not in (".toml", ".json"):
        raise ValueError(f"config: expected a .toml or .json file, got {file}")
    try:
        text = read_whole(file).decode("utf-8-sig")  # some editors begin a file with a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"config: expected a readable file, got {file} ({error})") from error
    try:
        values = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{file}: not the configuration of a run (nested too deeply)") from error
    except ValueError as error:  # TOMLDecodeError and JSONDecodeError: both tell the line, but the end as no line
        line = re.search(r"line (\d+)", str(error))
        number = line[1] if line else len(text.splitlines())
        raise ValueError(f"{file}, line {number}: not {file.suffix[1:].upper()}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected the configuration of a run, got {type(values).__name__}")
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if key := re.match(r"""\s*\[?\s*["']?(?:[\w-]+\.)*([\w-]+)["']?\s*[]=:]""", line):
            lines.setdefault(key[1], number)
    return values, lines


def _none(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _none_in_table(entry) for key, entry in value.items()}
    field = settings(TrainConfig).get(name)
    return None if value == NONE and field is not None and NoneType in field.kinds else value


def _none_in_table(value: Any) -> Any:
    return None if value == NONE else value
