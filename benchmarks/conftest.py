"""Options of a benchmark run, and its result files: a case is stored when all of its figures were taken."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
import torch

import sca_kernels

from . import results

FIGURES = pytest.StashKey[dict]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cases", help="ids of the cases to measure, separated by commas; all when left out")
    parser.addoption("--rounds", type=int, help="rounds per figure, instead of the case's own")
    parser.addoption("--store", type=Path, help="folder for the result files; without it, none are written")
    parser.addoption(
        "--allocator", choices=("reused", "default"), default="reused", help="how freed host memory is treated"
    )
    parser.addoption("--command-line", default="pytest benchmarks", help="what the result files name as the command")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = defaultdict(list)
    torch.set_num_threads(2)
    # For all parties alike, and before anything large is allocated; it holds for the rest of the process.
    if config.getoption("allocator") == "reused":
        sca_kernels.reuse_host_memory()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("cases"):
        wanted = config.getoption("cases").split(",")
        items[:] = [item for item in items if item.callspec.params["case"].id in wanted]


@pytest.fixture
def figures(pytestconfig: pytest.Config) -> dict[str, list]:
    """Where a benchmark puts its figure: case -> figures, in order."""
    return pytestconfig.stash[FIGURES]


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    folder, taken = config.getoption("store"), config.stash[FIGURES]
    if folder is None or not taken:
        return
    from .cases import CASES

    told = results.conditions(config.getoption("command_line"), config.getoption("allocator"))
    suffix = "" if told["allocator"] == "reused" else f"-{told['allocator']}-allocator"
    for name, figures in taken.items():
        case = CASES[name]
        if len(figures) == len(case.variants):
            results.store(folder, name + suffix, case.work, case.unit, told, figures)
