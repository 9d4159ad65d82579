"""Settings every test runs under, and a last line that counts what did not run."""

from __future__ import annotations

import random
from collections import Counter

import numpy
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(2)
# Derandomised, so that a red run can be run again; no deadline, since a first call may compile.
settings.register_profile("sca", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("sca")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Start every test from the same random state, whatever ran before it."""
    random.seed(0)
    numpy.random.seed(0)  # noqa: NPY002  libraries under test may draw from the global state
    torch.manual_seed(0)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the output with the skipped tests by reason, so that green never hides not-run."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or config.option.collectonly:
        return
    skipped = [report for report in reporter.stats.get("skipped", []) if isinstance(report.longrepr, tuple)]
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    detail = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common())
    reporter.write_line(f"not run: {len(skipped)}" + (f" ({detail})" if detail else ""))
