"""Settings: fields of frozen dataclasses, each told once: name, type, default, range, and the meaning below it.

Constructors, files, ``--set``, the options of a command and their help are made of these facts. Names of a registry are
looked up when a value is checked, so that a command's help loads no torch.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import inspect
import itertools
import math
import pkgutil
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from .registry import lookup

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["NONE", "Setting", "check", "check_number", "literal", "setting", "settings", "summary"]

NONE = "none"
"""None in files and on command lines, which have no word for it; where a list is asked for, one of no elements."""


def setting(
    default: Any = dataclasses.MISSING,
    *,
    factory: Any = dataclasses.MISSING,
    names: str | Iterable[str] = (),
    movable: bool = False,
    **limits: float,
) -> Any:
    """A dataclass field, and what its values, or the elements of its lists, may be.

    Args:
        default, factory: as of :func:`dataclasses.field`.
        names: those that it may have: here, or as ``package.module:REGISTRY``.
        movable: whether a resumed run may change it.
        limits: as of :func:`check_number`.
    """
    metadata = {"limits": limits, "source": names, "movable": movable}
    return dataclasses.field(default=default, default_factory=factory, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is known of one field.

    Attributes:
        name: its name.
        owner: the class that declares it.
        kinds: types of its value, ``NoneType`` among them where that may be None.
        items: type of the elements of a list or tuple; None for everything else.
        default: its value where none is given; ``dataclasses.MISSING`` where each instance makes its own.
        doc: its meaning.
        limits: of its numbers.
        source: its names, or where they are.
        movable: whether a resumed run may change it.
    """

    name: str
    owner: type
    kinds: tuple[type, ...]
    items: type | None
    default: Any
    doc: str
    limits: Mapping[str, float] = dataclasses.field(default_factory=dict)
    source: str | Iterable[str] = ()
    movable: bool = False

    @property
    def names(self) -> dict[str, Any]:
        """The names that it may have, and what they stand for; empty where any value of its type may do."""
        known = pkgutil.resolve_name(self.source) if isinstance(self.source, str) else dict.fromkeys(self.source)
        return dict(known)

    def parsed(self, text: str) -> Any:
        """The value that a text means; the text itself where it is no value of that type, for :meth:`typed` to refuse.

        Raises:
            ValueError: in place of a list of numbers.
        """
        if text == NONE and NoneType in self.kinds:
            return None
        if self.items is None:
            return _value(self.kinds, text)
        if isinstance(listed := literal(text), list):
            return listed
        parts = [] if text in ("", NONE) else [part.strip() for part in text.split(",")]
        values = [_value((self.items,), part) for part in parts]
        if self.items is not str and any(isinstance(value, str) for value in values):
            raise ValueError(f"{self.name}: expected numbers separated by commas, got {text!r}")
        return values

    def typed(self, value: Any) -> Any:
        """The value as its declared type: an int as a float, a list as a tuple, where that is asked for.

        Raises:
            ValueError: it is of another type, or not finite.
        """
        if self.items is not None and isinstance(value, list | tuple):
            (make,) = {*self.kinds} - {NoneType}
            return make(self._typed((self.items,), element) for element in value)
        return self._typed(self.kinds, value)

    def _typed(self, kinds: tuple[type, ...], value: Any) -> Any:
        if float in kinds and type(value) is int and abs(value) < 2**1000:
            return float(value)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            expected = " or ".join("none" if kind is NoneType else kind.__name__ for kind in self.kinds)
            elements = "" if self.items is None else f" of {self.items.__name__}"
            raise ValueError(f"{self.name}: expected {expected}{elements}, got {value!r}")
        if type(value) is float and not math.isfinite(value):
            raise ValueError(f"{self.name}: expected a finite number, got {value!r}")
        return value

    def check(self, value: Any) -> None:
        """ValueError where a value of the declared type is out of range, or no known name."""
        if self.items is not None:
            self._check_elements(value or ())
        elif value is not None:
            check_number(self.name, value, **self.limits)
            if self.source:
                lookup(self.names, value, self.name)

    def _check_elements(self, values: Iterable[Any]) -> None:
        shown = repr(",".join(map(str, values)))
        for bound in (_broken_bound(value, **self.limits) for value in values):
            if bound:
                many = f"shares {bound}" if bound.startswith("in") else f"numbers, each {bound}"
                raise ValueError(f"{self.name}: expected {many}, got {shown}")
        if self.source and not {*values} <= self.names.keys():
            raise ValueError(f"{self.name}: expected some of {', '.join(self.names)}, got {shown}")


@functools.lru_cache(maxsize=32)
def settings(config: type) -> Mapping[str, Setting]:
    """The settings of a dataclass by name, those of its last base first; one that is declared again stands where it is
    declared last."""
    owners: dict[str, type] = {}
    docs: dict[str, str] = {}
    for owner in reversed(config.__mro__):
        for name in inspect.get_annotations(owner):
            owners.pop(name, None)
            owners[name] = owner
        docs |= _docs(owner)
    hints, fields = get_type_hints(config), {field.name: field for field in dataclasses.fields(config)}
    return {
        name: Setting(
            name, owner, *_kinds(hints[name]), fields[name].default, docs.get(name, ""), **fields[name].metadata
        )
        for name, owner in owners.items()
        if name in fields
    }


def check(config: Any) -> None:
    """Give the fields of a frozen dataclass their declared types: the first thing to do when they have been set.

    Raises:
        ValueError: a value is of another type, out of range or no known name; the message names the field.
    """
    known = settings(type(config)).values()
    for each in known:
        object.__setattr__(config, each.name, each.typed(getattr(config, each.name)))
    for each in known:
        each.check(getattr(config, each.name))


def check_number(name: str, value: Any, **limits: float) -> None:
    """ValueError, naming ``name``, unless a number is within the limits that are given; NaN is within none.

    Args:
        limits: ``low <= value``, ``above < value``, ``value <= high``, ``value < below``.
    """
    bound = _broken_bound(value, **limits)
    if bound:
        noun = {"in": "a share ", ">": "a number ", "<": "a number "}.get(bound.split()[0], "")
        raise ValueError(f"{name}: expected {noun}{bound}, got {value!r}")


def _broken_bound(
    value: Any,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> str:
    """What a number should have been, in words; nothing where it is that."""
    bound = ""
    if above is not None and not value > above:
        bound = f"> {above}"
    elif low is not None and not value >= low:
        bound = f"at least {low}"
    elif high is not None and not value <= high:
        bound = f"at most {high:,}"
    elif below is not None and not value < below:
        bound = f"< {below}"
    if bound and 0 in (low, above) and 1 in (high, below):
        return f"in {'[' if above is None else '('}0, 1{']' if below is None else ')'}"
    return bound


def summary(doc: str) -> str:
    """The first sentence of a documentation string, without its markup; "eq. 1" and "et al. (2024)" end none."""
    (paragraph, *_) = doc.split("\n\n")
    (sentence, *_) = re.split(r"(?<=\.) (?=[A-Z])", " ".join(paragraph.split()), maxsplit=1)
    marked = re.compile(r":\w+:`~?([^`]*)`|``([^`]*)``|\*(\w+)\*")
    return marked.sub(lambda match: match[match.lastindex], sentence)


def literal(text: str) -> Any:
    """A TOML value, or the text itself where it is none."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:  # TOMLDecodeError, and an integer of more digits than Python reads
        return text


def _value(kinds: Iterable[type], text: str) -> Any:
    """What a text means to a setting of these types: as Python reads its numbers, or else as TOML does."""
    if str in kinds:
        return text
    for kind in (kind for kind in (int, float) if kind in kinds):
        with contextlib.suppress(ValueError):
            return kind(text)
    return literal(text)


def _kinds(hint: Any) -> tuple[tuple[type, ...], type | None]:
    """The types that a type hint names, and that of its elements."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    items = [get_args(option)[0] for option in options if get_origin(option) in (list, tuple)]
    return tuple(get_origin(option) or option for option in options), items[0] if items else None


def _docs(owner: type) -> dict[str, str]:
    """Field -> the string below it, of the fields that a class itself declares."""
    if not inspect.get_annotations(owner):
        return {}
    try:
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    except (OSError, TypeError):  # no source: a class of an interactive session, a frozen program
        return {}
    return {
        field.target.id: inspect.cleandoc(below.value.value)
        for field, below in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }
