"""A benchmark's figure of ours is that of our kernels, and says of which backend."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from benchmarks import cases, training
from benchmarks.measure import Named, clock, sampled
from sca_kernels import functional as F
from sca_kernels.backends import registry
from sca_kernels.backends.base import BackendError

X = torch.zeros(2, 1, 3)
BEST = next(b for b in registry().values() if b.name in ("cpu", "reference") and b.supports(X.device, X.dtype)[0])

needs_kernels = pytest.mark.skipif(BEST.name == "reference", reason="needs the compiled CPU backend")


@needs_kernels
def test_a_sample_names_the_backend_that_ran():
    milliseconds, name = sampled(clock, lambda: F.lif(X))
    assert milliseconds > 0
    assert name == BEST.name


def test_a_sample_of_the_reference_is_none_of_ours():
    with pytest.raises(AssertionError, match="not the reference"):
        sampled(clock, lambda: F.lif(X, backend="reference"))


@needs_kernels
def test_a_sample_in_which_a_kernel_failed_is_none_of_ours(monkeypatch):
    def fail(*arguments):
        raise BackendError("backend: no registers left")

    monkeypatch.setattr(BEST, "neuron_forward", fail)
    try:
        with pytest.raises(AssertionError, match="not the reference"):
            sampled(clock, lambda: F.lif(X))
        with pytest.raises(AssertionError, match="no registers left"):  # nor are later ones in which others run
            sampled(clock, lambda: F.pack_spikes(X))
    finally:
        BEST.failures.clear()


@needs_kernels
def test_a_named_party_is_run_by_its_backend_or_by_a_graph():
    assert Named(lambda: F.lif(X), BEST.name).sampled(clock)[1] == BEST.name
    assert Named(lambda: None, "triton", is_replayed=True).sampled(clock)[1] == "triton"
    for party, says in (
        (Named(lambda: F.lif(X), "triton"), f"triton runs, not {BEST.name}"),
        (Named(lambda: None, "triton"), "triton runs, not none of ours"),
        (Named(lambda: F.lif(X), BEST.name, is_replayed=True), "a graph, and no operator of ours"),
    ):
        with pytest.raises(AssertionError, match=says):
            party.sampled(clock)


@pytest.mark.parametrize("name", [name for name, case in cases.CASES.items() if case.counted])
def test_a_case_whose_operators_run_here_is_not_sampled_without(name):
    with pytest.raises(AssertionError, match="kernels of ours run"):
        cases.CASES[name].sample_ours(lambda: 1.0)


def test_a_run_in_which_a_backend_was_off_is_no_figure(monkeypatch):
    told = "backend cpu is off for torch.float32 on cpu: the compiled module can't be loaded"
    run = subprocess.run
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **options: run(
            [sys.executable, "-c", f"import sys; sys.exit(print({told!r}, file=sys.stderr))"], **options
        ),
    )
    with pytest.raises(AssertionError, match="backend cpu is off"):
        training.digits(0)()


def test_a_run_that_is_kept_goes_on_where_it_was_stopped(tmp_path):
    arguments = ("--data", "digits", "--epochs", "2", "--limit-train", "128", "--reference", "none", "--seed", "3")
    run = training.Run(*arguments, whole=True, folder=tmp_path / "run")
    seconds = run()
    first = run.details
    assert seconds == first["epochs"][-1]["seconds"]
    assert first["arguments"] == list(arguments)
    checkpoint = (tmp_path / "run" / "checkpoint.safetensors").read_bytes()

    again = training.Run(*arguments, whole=True, folder=tmp_path / "run")
    assert again() == seconds
    assert again.details["epochs"] == first["epochs"]
    assert (tmp_path / "run" / "checkpoint.safetensors").read_bytes() == checkpoint  # nothing was trained again
