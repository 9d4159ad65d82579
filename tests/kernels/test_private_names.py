"""Each private name of torch has a public way to fall back to: without it a training step is the same, and nothing is
missing but what the name buys."""

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
    """What comes of all that the names serve with nothing missing, and with those of each purpose missing in turn."""
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


def refused(says):
    def check(usual, otherwise):
        assert isinstance(usual, list)
        assert says in otherwise

    return check


def counted_again(usual, otherwise):
    assert usual["activity"][2] == [40, 40, 40]
    assert otherwise["activity"] == [[2 * z for z in sums] for sums in usual["activity"]]
    assert otherwise["running_mean"] == pytest.approx([1.9 * z for z in usual["running_mean"]], rel=1e-5)


def not_taken_back(usual, otherwise):
    assert (usual, otherwise) == (0, 1)


BY_TORCH = refused("functorch transforms")
WITHOUT = {
    "graph_task": {"checkpointed": counted_again},
    "below_autograd": {
        "neuron in a transform": BY_TORCH,
        "second derivative": refused("this release of torch has no second derivative of it"),
    },
    "in_transform": {"neuron in a transform": BY_TORCH, "convolution in a transform": BY_TORCH},
    "applied_in_transform": {"neuron in a transform": BY_TORCH},
    "compiled_call": {"taken back": not_taken_back},
}
"""What of it all is another without the names of a purpose; without those that buy speed alone, nothing is."""


@pytest.mark.parametrize("purpose", PRIVATE)
def test_all_is_the_same_without_what_torch_has_not_promised_but_for_what_that_buys(steps, purpose):
    usual, otherwise = steps["nothing"], steps[purpose]
    assert "error" not in usual, usual
    assert "error" not in otherwise, otherwise
    assert (usual["lacks"], otherwise["lacks"]) == ([], [purpose])
    others = WITHOUT.get(purpose, {})
    for what, check in others.items():
        check(usual[what], otherwise[what])
    same = usual.keys() - others.keys() - {"lacks"}
    assert {what: otherwise[what] for what in same} == {what: usual[what] for what in same}


@pytest.mark.parametrize("purpose", PRIVATE)
def test_this_torch_has_what_is_asked_of_it(purpose):
    """A name that a release drops shows here, before anybody wonders why all calls have become slower."""
    for name in PRIVATE[purpose].names:
        attrgetter(name)(torch)
