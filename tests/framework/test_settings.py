"""sca.settings: a field's declaration is its reading, its check, its option and its help; packages that load lazily."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import MISSING, dataclass, field
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sca.cli.errors import reported
from sca.cli.options import options_of
from sca.pruning.settings import EXTENSIONS, entries
from sca.settings import check, check_number, setting, settings, summary
from sca.training import TrainConfig

REGISTRY = {"fast": "quick", "slow": "in no hurry"}


@dataclass(frozen=True, kw_only=True)
class Base:
    """What others begin with."""

    seed: int = 0
    """Of the base."""

    share: float = setting(0.5, above=0, high=1)
    """A share, in (0, 1]. More about it."""


@dataclass(frozen=True)
class First:
    """Comes in front of its neighbour on the left."""

    kind: str = setting("fast", names="tests.framework.test_settings:REGISTRY")
    """A name: ``fast`` or ``slow``."""


@dataclass(frozen=True)
class Small(Base, First):
    """A configuration with a field of each type."""

    freeze: list[str] = field(default_factory=list)
    """Layers that do not learn: names, as in :func:`sca.compact`."""

    sizes: tuple[int, ...] = setting((4,), low=1, high=9)
    """Several numbers."""

    note: str | None = None
    """Free text
    over two lines."""

    limit: int | None = setting(None, low=1, movable=True)
    """None is none (see eq. 2 of nobody et al. (2024)). And so on."""

    table: dict[str, Any] = field(default_factory=dict)
    """Keys and values."""

    swift: bool = True
    """Go fast."""

    careful: bool = False
    """Look twice."""

    seed: int = setting(Base.seed, low=0)
    """Of everything."""

    bare: float = 1.0

    def __post_init__(self) -> None:
        check(self)


def test_settings_are_in_the_order_of_bases_and_a_second_declaration_counts():
    known = settings(Small)
    assert [*known] == [
        *("kind", "share", "freeze", "sizes", "note", "limit", "table", "swift", "careful", "seed", "bare")
    ]
    assert (known["seed"].doc, known["seed"].owner, known["share"].owner) == ("Of everything.", Small, Base)
    assert (known["seed"].default, known["freeze"].default, known["bare"].doc) == (0, MISSING, "")
    assert [name for name, each in known.items() if each.movable] == ["limit"]
    assert known["kind"].names == REGISTRY


def test_settings_of_a_class_that_has_no_source_have_no_words():
    made = dataclass(frozen=True)(type("Made", (), {"__annotations__": {"a": "int"}, "a": 3, "__module__": "builtins"}))
    assert (settings(made)["a"].default, settings(made)["a"].doc) == (3, "")


@pytest.mark.parametrize(
    ("doc", "sentence"),
    [
        ("One. Two.", "One."),
        ("Of ``a``,\n    and :class:`~sca.B` of *all*: 0.5.\n\nMore.", "Of a, and sca.B of all: 0.5."),
        ("See eq. 1 of A et al. (2024), 2.5 of it. ``b`` too. End.", "See eq. 1 of A et al. (2024), 2.5 of it. b too."),
        ("No end\n\nAnother paragraph.", "No end"),
        ("", ""),
    ],
)
def test_summary_is_the_first_sentence_without_markup(doc, sentence):
    assert summary(doc) == sentence


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("freeze", "a,b", ["a", "b"]),
        ("freeze", " a , b.c ", ["a", "b.c"]),
        ("freeze", '["a", "b"]', ["a", "b"]),
        ("freeze", "", []),
        ("freeze", "none", []),
        ("freeze", "one", ["one"]),
        ("sizes", "1,2", (1, 2)),
        ("sizes", "[3]", (3,)),
        ("note", "none", None),
        ("note", "12", "12"),
        ("note", "true", "true"),
        ("limit", "none", None),
        ("limit", "0x10", 16),
        ("share", ".5", 0.5),
        ("share", "1", 1.0),
        ("share", "5e-1", 0.5),
        ("swift", "false", False),
        ("table", "{a = 1}", {"a": 1}),
    ],
)
def test_parsed_and_typed_read_a_text_as_the_field_declares(name, text, value):
    each = settings(Small)[name]
    read = each.typed(each.parsed(text))
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": "a"}, "freeze: expected list of str, got 'a'"),
        ({"freeze": ["a", 1]}, "freeze: expected list of str, got 1"),
        ({"sizes": [0, 3]}, "sizes: expected numbers, each at least 1, got '0,3'"),
        ({"sizes": (3, 10)}, "sizes: expected numbers, each at most 9, got '3,10'"),
        ({"sizes": (True,)}, "sizes: expected tuple of int, got True"),
        ({"share": 0}, r"share: expected a share in \(0, 1\], got 0.0"),
        ({"share": float("nan")}, "share: expected a finite number, got nan"),
        ({"bare": 10**400}, "bare: expected float, got 1000"),
        ({"limit": 0}, "limit: expected at least 1, got 0"),
        ({"limit": 1.5}, "limit: expected int or none, got 1.5"),
        ({"kind": "fats"}, "kind: expected one of fast, slow, got 'fats'; did you mean fast?"),
        ({"swift": 1}, "swift: expected bool, got 1"),
        ({"table": []}, r"table: expected dict, got \[\]"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_check_names_the_field_what_was_expected_and_what_came(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Small(**changes)


def test_check_makes_values_of_the_declared_types():
    made = Small(share=1, sizes=[2, 3], freeze=("a",))
    assert (made.share, made.sizes, made.freeze) == (1.0, (2, 3), ["a"])
    assert type(made.share) is float


@pytest.mark.parametrize("value", [float("nan"), -1, 2])
def test_check_number_refuses_what_is_outside(value):
    for limits in ({"low": 0, "high": 1}, {"above": -0.5, "below": 1.5}):
        with pytest.raises(ValueError, match=r"^n: expected"):
            check_number("n", value, **limits)
        check_number("n", 1, **limits)


def run(*arguments: str, **generator: Any) -> tuple[int, str, list[dict[str, Any]]]:
    """Exit code, output, and what the command was given."""
    given = []
    app = typer.Typer()

    @app.command()
    @reported
    @options_of(Small, "changes", **generator)
    def command(changes: dict[str, Any], out: str = "here") -> None:
        given.append({**changes, "out": out})

    result = CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200", "NO_COLOR": "1"})
    return result.exit_code, result.output, given


def test_options_give_the_command_the_fields_that_were_named():
    arguments = ("--freeze", "a,b", "--no-swift", "--careful", "--limit", "none", "--sizes", "1,2", "--share", ".5")
    assert run(*arguments, "--out", "there")[2] == [
        {"freeze": ["a", "b"], "swift": False, "careful": True, "limit": None, "sizes": [1, 2], "share": 0.5}
        | {"out": "there"}
    ]
    assert run()[2] == [{"out": "here"}]


def test_options_that_mean_nothing_are_refused_in_one_line():
    code, output, given = run("--sizes", "1,x")
    assert (code, output, given) == (2, "error: sizes: expected numbers separated by commas, got '1,x'\n", [])


def test_options_have_the_fields_first_sentence_for_help_below_the_heading_of_their_class():
    output = run("--help", panels={"Begin": First, "Rest": Small}, shows_defaults=True)[1]
    lines = [" ".join(line.strip("│ ").split()) for line in output.splitlines()]
    for line in ("--freeze <str,...> Layers that do not learn: names, as in sca.compact.", "--swift --no-swift"):
        assert any(shown.startswith(line) for shown in lines), line
    assert "Free text over two lines." in output
    assert "And so on" not in output
    assert "--table" not in output
    assert output.index("Begin") < output.index("--kind") < output.index("Rest") < output.index("--share")


def test_options_can_be_some_of_the_fields_and_keep_older_names():
    assert run("--limits", "3", only=("limit",), old_names={"limit": "--limits"})[2][0]["limit"] == 3
    assert run("--share", "0.5", only=("limit",))[0] == 2


@pytest.mark.parametrize("package", ["sca.training", "sca.bench", "sca.experiments.table1"])
def test_packages_load_lazily_and_prefer_what_they_export_to_modules_of_that_name(package):
    code = f"""
import importlib, pkgutil, sys, types
package = importlib.import_module({package!r})
importlib.import_module("{package}.config")
assert "torch" not in sys.modules
assert set(package.__all__) <= set(dir(package))
for info in pkgutil.iter_modules(package.__path__):
    if info.name != "lightning":  # needs another package
        importlib.import_module(f"{package}.{{info.name}}")
for name in package.__all__:
    assert not isinstance(getattr(package, name), types.ModuleType), name
try:
    package.nothing
except AttributeError as error:
    assert "it has" in str(error)
else:
    raise AssertionError
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "name", [name for name, each in settings(TrainConfig).items() if each.source or name in EXTENSIONS]
)
def test_the_meaning_of_a_setting_tells_the_names_that_it_may_have_or_where_they_are(name):
    each = settings(TrainConfig)[name]
    names = entries(name) if name in EXTENSIONS else each.names
    assert "a name in" in each.doc or not [known for known in names if f"``{known}``" not in each.doc]
