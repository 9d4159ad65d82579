"""Options of a benchmark run, and its result files: a case is stored when all of its figures were taken."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

import sca_kernels

from . import results

FIGURES = pytest.StashKey[dict]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rounds", type=int, help="rounds per figure, instead of the case's own; not stored")
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


@pytest.fixture
def figures(pytestconfig: pytest.Config) -> dict[str, list]:
    """Where a benchmark puts its figure: case -> figures, in order."""
    return pytestconfig.stash[FIGURES]


def pytest_sessionfinish(session: pytest.Session) -> None:
    from .cases import CASES

    config = session.config
    if config.getoption("rounds"):
        return
    told = results.conditions(config.getoption("command_line"), config.getoption("allocator"))
    suffix = "" if told["allocator"] == "reused" else f"-{told['allocator']}-allocator"
    for name, figures in config.stash[FIGURES].items():
        case = CASES[name]
        if len(figures) == len(case.variants):
            results.store(name + suffix, case.work, case.unit, told, figures)
