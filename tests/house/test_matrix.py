"""The README's table of supported versions is that of `.ci/matrix`, and what the package declares agrees with it."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from .tree import ROOT


@pytest.fixture(scope="module")
def matrix() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("matrix", str(ROOT / ".ci" / "matrix"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("matrix", loader))
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def lines(folder: str) -> Iterator[tuple[Path, str]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield from ((path, line.strip()) for line in path.read_text().splitlines())


def parts(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


def test_readme_tells_the_rows_of_the_matrix(matrix):
    readme = (ROOT / "README.md").read_text()
    assert readme == matrix.with_support_table(readme)


def test_the_oldest_versions_are_those_that_the_package_asks_for(matrix):
    project = (ROOT / "pyproject.toml").read_text()
    oldest = {name: min(parts(getattr(row, name)) for row in matrix.ROWS) for name in ("python", "torch", "triton")}
    assert re.search(r'requires-python = ">=([\d.]+)"', project)[1] == ".".join(map(str, oldest["python"]))
    assert re.search(r'"torch>=([\d.]+)"', project)[1] == ".".join(map(str, oldest["torch"]))
    assert re.search(r'"triton>=([\d.]+)"', project)[1] == ".".join(map(str, oldest["triton"]))


def test_the_package_names_the_pythons_of_the_rows(matrix):
    classified = re.findall(r"Python :: (\d+\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert classified == sorted({row.python for row in matrix.ROWS}, key=parts)


def test_the_pinned_versions_are_a_row(matrix):
    pinned = dict(re.findall(r"^(torch|triton)==(\S+)", (ROOT / "constraints.txt").read_text(), re.M))
    assert any((row.torch, row.triton) == (pinned["torch"], pinned["triton"]) for row in matrix.ROWS)


def test_ci_compiles_by_tritons_as_old_and_as_new_as_those_of_the_matrix(matrix):
    compiled = sorted(parts(version) for version in (ROOT / ".ci" / "triton_versions").read_text().split())
    used = sorted(parts(row.triton) for row in matrix.ROWS)
    assert compiled[0] == used[0]
    assert compiled[-1] >= used[-1]


def test_no_isinstance_asks_for_a_union_where_a_compiler_may_look():
    """torch.compile of 2.9 stops at ``isinstance(x, A | B)``."""
    asked = re.compile(r"isinstance\([^\n]*[\w.] \| [\w.]+\)")
    found = [f"{path.relative_to(ROOT)}: {line}" for path, line in lines("sca_kernels") if asked.search(line)]
    assert found == []


def test_rows_that_there_are_not_are_refused(matrix, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["matrix", "torch1.0"])
    with pytest.raises(SystemExit):
        matrix.main()
    assert "expected some of torch2.9" in capsys.readouterr().err
