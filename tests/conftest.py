"""Settings every test runs under, and last lines that count what ran where and what did not run."""

from __future__ import annotations

import os
import random
from collections import Counter

import numpy
import pytest
import torch
from hypothesis import settings

# Side by side, workers share the cores; tests that are about threads set their number.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
# Derandomised, so that a red run can be run again; no deadline, since a first call may compile.
settings.register_profile("sca", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("sca")

PLACES = ("cpu", "interpreter", "compile-only", "GPU")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--api-calls", type=int, default=300, help="generated calls of each public API (default: 300)")


@pytest.fixture
def api_calls(request) -> int:
    """How many calls a generated test makes."""
    return request.config.getoption("--api-calls")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same random state, whatever ran before it."""
    random.seed(0)
    numpy.random.seed(0)  # noqa: NPY002  libraries under test may draw from the global state
    torch.manual_seed(0)


def place_of(item: pytest.Item) -> str:
    """What runs the code that a test is about."""
    target = item.callspec.params.get("target") if hasattr(item, "callspec") else None
    backend, device = target if isinstance(target, tuple) else ("", "cpu")
    if device == "cuda" or item.get_closest_marker("gpu"):
        return "GPU"
    if backend == "triton" or item.get_closest_marker("interpreter"):
        return "interpreter"
    return "compile-only" if item.get_closest_marker("compile_only") else "cpu"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Note in every report where its test runs."""
    for item in items:
        item.user_properties.append(("place", place_of(item)))


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the output with the tests run by place, and the skipped ones by reason, so that green never hides not-run."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or config.option.collectonly:
        return
    ran = [report for outcome in ("passed", "failed") for report in reporter.stats.get(outcome, [])]
    places = Counter(dict(report.user_properties).get("place") for report in ran if report.when == "call")
    reporter.write_line("ran: " + ", ".join(f"{places[place]} {place}" for place in PLACES))
    for line in (value for report in ran for name, value in report.user_properties if name == "generated"):
        reporter.write_line(f"generated: {line}")
    skipped = [report for report in reporter.stats.get("skipped", []) if isinstance(report.longrepr, tuple)]
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    detail = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    reporter.write_line(f"not run: {len(skipped)}" + (f" ({detail})" if detail else ""))
