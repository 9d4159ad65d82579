"""What `sca doctor` stands on: a report that runs every backend, and process-wide memory reuse."""

import os
import subprocess
import sys

import pytest
import torch

from sca_kernels import doctor
from sca_kernels import functional as F
from sca_kernels.backends import registry
from sca_kernels.backends.reference import ReferenceBackend


def test_report_names_every_backend_and_gives_a_fix_for_what_is_off():
    rows = {row.name: row for row in doctor.report()}
    assert set(registry()) <= set(rows)
    assert rows["reference"].on
    for row in rows.values():
        assert row.detail
        assert row.on or row.fix, row


def test_report_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    doctor.report()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("wrong", ["spikes", "gradients"])
def test_self_test_finds_a_backend_that_computes_wrongly(monkeypatch, wrong):
    if wrong == "spikes":
        original = ReferenceBackend.batch_norm_forward

        def tampered(self, x, *rest):
            out, norm = original(self, x, *rest)
            return out._replace(spike_count=out.spike_count + (x.dtype == torch.float32)), norm

        monkeypatch.setattr(ReferenceBackend, "batch_norm_forward", tampered)
    else:
        original = ReferenceBackend.batch_norm_backward

        def tampered(self, grad_spikes, grad_v, x, *rest):
            g = original(self, grad_spikes, grad_v, x, *rest)
            return g._replace(x=g.x * 1.001) if x.dtype == torch.float32 else g

        monkeypatch.setattr(ReferenceBackend, "batch_norm_backward", tampered)
    row = next(row for row in doctor.report() if row.name == "reference")
    assert not row.on
    assert "self-test failed" in row.detail


def test_report_tells_every_dtype_and_what_raises_instead_of_a_traceback(monkeypatch):
    def fail(self, *arguments):
        raise RuntimeError("PassManager::run failed")

    monkeypatch.setattr(ReferenceBackend, "batch_norm_backward", fail)
    row = next(row for row in doctor.report() if row.name == "reference")
    assert not row.on
    assert "self-test failed: RuntimeError: PassManager::run failed" in row.detail
    assert all(name in row.detail for name in ("float32", "bfloat16", "float16", "float64"))
    assert row.fix

    def unable(self, device, dtype):
        raise OSError("no driver")

    monkeypatch.setattr(ReferenceBackend, "supports", unable)
    row = next(row for row in doctor.report() if row.name == "reference")
    assert "OSError: no driver" in row.detail


def test_compile_row_tells_the_first_line_of_what_torch_compile_says(monkeypatch):
    def broken(function):
        raise RuntimeError("\n  Failed to find C++ compiler. Please specify via CXX.\n\nSet TORCHDYNAMO_VERBOSE=1")

    monkeypatch.setattr(torch, "compile", broken)
    doctor.compile_problem.cache_clear()
    try:
        row = doctor.compile_row()
    finally:
        doctor.compile_problem.cache_clear()
    assert (row.on, row.detail) == (False, "Failed to find C++ compiler. Please specify via CXX.")
    assert "CXX" in row.fix


def test_backends_of_names_those_that_ran():
    x = torch.zeros(2, 1, 3)
    assert doctor.backends_of(lambda: F.lif(x, backend="reference")) == ["reference"]
    assert doctor.backends_of(lambda: None) == []


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
@pytest.mark.skipif("SCA_KERNELS_SANITIZE" in os.environ, reason="AddressSanitizer has an allocator of its own")
def test_reused_memory_is_not_paged_in_again():
    """64 MiB tensors freed and allocated again: page faults stay few once memory is kept."""
    script = """
import resource, torch, sca_kernels
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    before = faults()
    for _ in range(5):
        torch.ones(16 * 2**20)
    return before, faults()
assert not sca_kernels.memory.is_reusing_host_memory()
assert sca_kernels.reuse_host_memory()
for _ in range(8):  # until the heap has its shape
    before, after = use()
assert after - before < 1000, after - before
"""
    subprocess.run([sys.executable, "-c", script], check=True)
