"""All pictures are in one style: colours stand in sca.pictures and nowhere else."""

from __future__ import annotations

import re
from pathlib import Path

from .tree import PACKAGES, ROOT

STYLE = PACKAGES["sca"] / "pictures.py"
NAME = r"(?!(?:none|currentColor|inherit|transparent)\b)[a-zA-Z]+\b"
COLOUR = re.compile(
    r"#(?:[0-9a-fA-F]{8}|[0-9a-fA-F]{6}|[0-9a-fA-F]{3})\b(?!-)"  # hexadecimal
    r"|\b(?:rgb|hsl)a?\("
    r"|\btab:\w+"  # of matplotlib's own palette
    r"|\b(?:face|edge)?colou?r=[\"'](?:C\d|[a-z]+)[\"']"  # by name
    rf"|\b(?:fill|stroke)=[\"']{NAME}[\"']"
    rf"|\b(?:fill|stroke|color|background(?:-color)?):\s*{NAME}(?![(\w-])"  # in a style; no function, such as var()
)


def colours(text: str) -> list[str]:
    return COLOUR.findall(text)


def sources() -> list[Path]:
    folders = [*PACKAGES.values(), ROOT / "benchmarks"]
    return sorted(path for folder in folders for suffix in ("py", "html") for path in folder.rglob(f"*.{suffix}"))


def test_colours_stand_in_one_file():
    assert {
        str(path.relative_to(ROOT)): found for path in sources() if (found := colours(path.read_text()))
    }.keys() == {str(STYLE.relative_to(ROOT))}


def test_a_colour_is_found_in_each_of_its_forms():
    for planted in (
        "'#1b6ca8'",
        "color: #fff;",
        "c='tab:green'",
        'plot(color="black")',
        "facecolor='C0'",
        "#0072B2",
        '<path fill="red"/>',
        "<path stroke='RebeccaPurple'>",
        '<path stroke="rgb(1,2,3)">',
        'style="color: tomato"',
        "fill:red;",
        "background-color: white }",
        "{ background: hsl(1 2% 3%) }",
        "color: rgba(0, 0, 0, 0.5)",
        'fill="hsla(1, 2%, 3%, 0.4)"',
    ):
        assert len(colours(planted)) == 1, planted
    for harmless in (
        'href="#run-A"',
        "# comment",
        "color=COLOURS[role]",
        'markerfacecolor=colour if x else "none"',
        'fill="none"',
        'stroke="currentColor"',
        'fill="var(--kept)"',
        "fill=True",
        "color: inherit",
        "color: var(--ink)",
        "background-color: transparent",
        "color-scheme: light dark",
        "print-color-adjust: exact",
        "to_rgb(colour)",
    ):
        assert colours(harmless) == [], harmless
