"""What the documents say is so: code runs; commands, files, links and variables exist; figures were measured."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import results

from .tree import ROOT, modules

DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
VARIABLE = re.compile(r"\bSCA_KERNELS_[A-Z0-9_]*[A-Z0-9]\b")


def blocks(document: str, language: str) -> list[str]:
    """Fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / document).read_text(), re.S | re.M)


def commands(document: str) -> list[list[str]]:
    """The command lines of a document's shell blocks, comments dropped, as words."""
    lines = "".join(blocks(document, "sh")).splitlines()
    return [line.split("#")[0].split() for line in lines if line.split("#")[0].strip()]


def test_readme_code_runs(tmp_path):
    """In order and in one process: a later block may use what an earlier one made."""
    code = "\n".join(blocks("README.md", "python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_exist(document):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {word for line in commands(document) if line[0] == "make" for word in line[1:2]}
    named |= set(re.findall(r"`make ([a-z]+)", (ROOT / document).read_text()))
    assert named <= targets


@pytest.mark.parametrize("document", DOCUMENTS)
def test_sca_commands_and_their_options_exist(document):
    sca = Path(sys.executable).with_name("sca")
    wide = {**os.environ, "COLUMNS": "200"}
    for _, command, *options in (line for line in commands(document) if line[0] == "sca"):
        words = list(itertools.takewhile(lambda word: not word.startswith("-"), options))
        shown = subprocess.run([sca, command, *words, "--help"], capture_output=True, text=True, check=False, env=wide)
        assert shown.returncode == 0, (command, shown.stderr)
        assert [option for option in options if option.startswith("--") and option not in shown.stdout] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_and_links_exist(document):
    text = (ROOT / document).read_text()
    named = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    # In backticks: a path with a folder we have, without a placeholder.
    named += [path for path in re.findall(r"`([\w./-]+/[\w./-]*)`", text) if (ROOT / path.split("/")[0]).is_dir()]
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_readme_lists_every_environment_variable():
    read_by_code = set()
    for path in [*modules().values(), ROOT / "setup.py", *ROOT.glob("csrc/**/*.[ch]*"), *ROOT.glob("tests/**/*.py")]:
        if path != Path(__file__):
            read_by_code.update(VARIABLE.findall(path.read_text()))
    # Include guards and macros share the prefix; a variable is a quoted name.
    assert set(re.findall(r"`(SCA_KERNELS_\w+)`", (ROOT / "README.md").read_text())) == {
        name for name in read_by_code if not name.endswith(("_H", "_H_"))
    }


def test_readme_figures_are_the_stored_results():
    text = (ROOT / "README.md").read_text()
    assert results.spliced(text) == text, "README.md: run `python -m benchmarks.run --readme`"
    assert results.document() == results.DOCUMENT.read_text(), "RESULTS.md: run `python -m benchmarks.run --readme`"


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*/*.json")), ids=lambda path: path.stem)
def test_result_file_is_readable_and_names_its_conditions(path):
    for result in results.parts(path):
        assert path.stem in (result["case"], result["conditions"]["date"][:10])
        told = ("commit", "device", "command", "versions", "threads", "date")
        assert all(result["conditions"].get(key) for key in told)
        assert result.get("figures") or result["lines"]
        for figure in result.get("figures", ()):
            assert figure["shape"]
            assert all(time == "not measured" or time["rounds"] >= 1 for time in figure["parties"].values())
