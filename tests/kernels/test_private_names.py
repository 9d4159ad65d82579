"""Each private name of torch has a public way to fall back to: the same training step without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest
import torch

from sca_kernels.torch_private import PRIVATE

PROGRAM = Path(__file__).with_name("step_without.py")


@pytest.fixture(scope="module")
def steps():
    """What comes of a training step with nothing missing, and with the names of each purpose missing in turn."""
    purposes = {"nothing": [], **{purpose: list(private.names) for purpose, private in PRIVATE.items()}}
    done = subprocess.run(
        [sys.executable, str(PROGRAM)],
        input=json.dumps(purposes),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ":".join(filter(None, sys.path))},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("purpose", PRIVATE)
def test_a_training_step_is_the_same_without_what_torch_has_not_promised(steps, purpose):
    assert "error" not in steps["nothing"], steps["nothing"]
    assert "error" not in steps[purpose], steps[purpose]
    assert (steps["nothing"].pop("lacks", []), steps[purpose].pop("lacks")) == ([], [purpose])
    assert steps[purpose] == steps["nothing"]


def test_every_name_says_what_it_buys_and_what_runs_without_it():
    for private in PRIVATE.values():
        assert private.names
        assert private.buys
        assert private.otherwise


@pytest.mark.parametrize("purpose", PRIVATE)
def test_this_torch_has_what_is_asked_of_it(purpose):
    """A name that a release drops shows here, before anybody wonders why all calls have become slower."""
    for name in PRIVATE[purpose].names:
        attrgetter(name)(torch)
