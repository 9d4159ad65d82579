"""When the Triton backend is chosen, when it is not, and what is said then; no kernel runs here."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

from sca_kernels import backends, doctor
from sca_kernels import functional as F
from sca_kernels.backends import choose, registry
from sca_kernels.backends.base import BackendError
from sca_kernels.channels import Bits
from sca_kernels.gpu import neuron

CUDA = torch.device("cuda", 0)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture
def backend(monkeypatch):
    """The Triton backend, its choice and what it found out forgotten before and after."""
    triton_module = backends.triton
    yield registry()["triton"]
    registry()["triton"].failures.clear()
    backends._able.cache_clear()
    triton_module._obstacle.cache_clear()


@pytest.fixture
def pretended_gpu(monkeypatch, backend):
    """A CUDA device of compute capability 9.0 as far as the choice of a backend can see; returns what a probe of it
    finds: fill the list with an exception to make it fail."""
    pytest.importorskip("triton", reason="needs Triton (pip install triton)")
    from sca_kernels import triton_kernels

    failures = []

    def probe(launcher, x, *arguments):
        assert callable(launcher.forward)
        for failure in failures:
            raise_within_triton(failure)
        return x, None

    zeros = torch.zeros
    monkeypatch.setattr(triton_kernels, "INTERPRETED", False)
    monkeypatch.setattr(neuron, "forward", probe)
    monkeypatch.setattr(neuron, "backward", lambda *arguments: None)
    monkeypatch.setattr(torch, "zeros", lambda *a, device=None, **k: zeros(*a, **k))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    backends._able.cache_clear()
    backends.triton._obstacle.cache_clear()
    return failures


def raise_within_triton(error: BaseException) -> None:
    """Raise it from code whose module is Triton's, as the compiler's passes, ptxas and the driver's launcher do."""
    exec("raise error", {"__name__": "triton.compiler.compiler", "error": error})


class OnGpu:
    """As much of a CUDA tensor as the choice of a backend reads."""

    device, dtype = CUDA, torch.float32


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda_tensors_default_to_triton(pretended_gpu, dtype):
    x = OnGpu()
    x.dtype = dtype
    assert choose("", "neuron_forward", x).name == "triton"


def test_cpu_tensors_never_default_to_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("", "neuron_forward", torch.zeros(1, 1, 1)).name != "triton"


def test_cpu_tensors_are_refused_with_the_reason_and_the_fix(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"'triton' can't run .* on cpu: .*CUDA device.* Others that can: .*reference"):
        F.lif(torch.zeros(1, 1, 1), backend="triton")


def test_tensors_on_two_devices_are_refused_before_a_backend_is_asked(target):
    backend, device = target
    with pytest.raises(ValueError, match=f"v_init: expected a tensor on {device}.*, where x is, got one on meta"):
        F.lif(torch.zeros(1, 2, 3, device=device), v_init=torch.zeros(2, 3, device="meta"), backend=backend)


@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
def test_float64_is_left_to_the_reference(device, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    ok, reason = registry()["triton"].supports(torch.device(device), torch.float64)
    assert not ok
    assert "float64" in reason or "meta" in reason


@pytest.mark.parametrize(("dtype", "ok"), [(torch.float32, True), (torch.float16, True), (torch.bfloat16, False)])
def test_a_gpu_before_ampere_has_no_bfloat16(pretended_gpu, monkeypatch, backend, dtype, ok):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    supported, reason = backend.supports(CUDA, dtype)
    assert supported == ok
    assert ok or reason == f"dtype {dtype} needs compute capability >= (8, 0), the device has (7, 5)"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Found no NVIDIA driver on your system. Please check that you have one.\nmore"),
        RuntimeError("The NVIDIA driver on your system is too old (found version 11040)."),
        AssertionError("Torch not compiled with CUDA enabled"),
    ],
    ids=["no driver", "old driver", "no CUDA"],
)
def test_without_a_usable_driver_the_reason_is_its_first_line(pretended_gpu, monkeypatch, backend, error):
    def capability(device):
        raise error

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    ok, reason = backend.supports(CUDA, torch.float32)
    assert not ok
    assert reason == f"CUDA can't be used ({str(error).splitlines()[0]})"


def test_a_named_backend_that_cannot_compile_is_an_error_with_the_reason(pretended_gpu):
    pretended_gpu.append(RuntimeError("Failed to find C compiler. Please specify via CC.\ntrace"))
    with pytest.raises(
        ValueError, match=r"(?s)can't run a neuron's kernels on cuda:0 \(RuntimeError: Failed to find C.*trace\)\. O"
    ):
        choose("triton", "neuron_forward", OnGpu())


@pytest.mark.parametrize("module", [None, object()], ids=["absent", "another Triton's"])
def test_whatever_keeps_the_kernels_from_loading_is_the_reason(pretended_gpu, monkeypatch, backend, module):
    monkeypatch.setitem(sys.modules, "sca_kernels.triton_kernels.launcher", module)
    monkeypatch.delattr("sca_kernels.triton_kernels.launcher", raising=False)
    ok, reason = backend.supports(CUDA, torch.float32)
    assert not ok
    assert "Error: " in reason


@pytest.mark.parametrize("text", ["device-side assert triggered", "out of memory"])
def test_a_probe_on_a_lost_device_is_no_reason_to_go_on(pretended_gpu, backend, text):
    pretended_gpu.append(RuntimeError(f"CUDA error: {text}"))
    with pytest.raises(RuntimeError, match=text):
        choose("", "neuron_forward", OnGpu())
    pretended_gpu.clear()  # and nothing is kept of it
    assert choose("", "neuron_forward", OnGpu()).name == "triton"


def test_the_default_falls_back_and_logs_the_reason_once(pretended_gpu, caplog):
    pretended_gpu.append(OSError("the driver is too old for this module"))
    with caplog.at_level(logging.WARNING):
        chosen = [choose("", "neuron_forward", OnGpu()).name for _ in range(3)]
    assert "triton" not in chosen
    told = [record.getMessage() for record in caplog.records if "backend triton" in record.getMessage()]
    assert len(told) == 1
    assert "the driver is too old for this module" in told[0]


def test_an_interpreting_process_is_no_default_for_cuda(pretended_gpu, monkeypatch, backend):
    from sca_kernels import triton_kernels

    monkeypatch.setattr(triton_kernels, "INTERPRETED", True)
    ok, reason = backend.supports(CUDA, torch.float32)
    assert not ok
    assert "TRITON_INTERPRET=1" in reason


@pytest.fixture
def broken(monkeypatch):
    """A backend preferred to all others whose every kernel fails to compile."""
    best = choose("", "neuron_forward", torch.zeros(1))
    if best.name == "reference":
        pytest.skip("needs another backend than the reference")

    def fail(*arguments):
        raise BackendError(f"backend: {best.name!r} failed to compile a kernel (out of registers)")

    for op in ("neuron_forward", "neuron_backward"):
        monkeypatch.setattr(best, op, fail)
    yield best
    best.failures.clear()


def test_a_kernel_that_does_not_compile_is_an_error_where_its_backend_was_named(broken):
    with pytest.raises(BackendError, match="failed to compile a kernel"):
        F.lif(torch.zeros(2, 1, 3), backend=broken.name)
    assert not broken.failures


def test_a_kernel_that_does_not_compile_hands_the_default_on_with_one_reason(broken, caplog):
    x = torch.randn(2, 1, 3, requires_grad=True)
    with caplog.at_level(logging.WARNING):
        outputs = [F.lif(x) for _ in range(2)]
    outputs[0].spikes.sum().backward()
    assert torch.equal(outputs[0].spikes, F.lif(x, backend="reference").spikes)
    told = [r.getMessage() for r in caplog.records if "out of registers" in r.getMessage()]
    assert told == [
        f"backend {broken.name} is off for {op} of this kind (torch.float32 on cpu): "
        f"backend: {broken.name!r} failed to compile a kernel (out of registers)"
        for op in ("neuron_forward", "neuron_backward")
    ]


def test_only_the_kind_of_call_that_failed_is_handed_on(monkeypatch):
    best = choose("", "neuron_forward", torch.zeros(1))
    if best.name == "reference":
        pytest.skip("needs another backend than the reference")
    original, cpu = type(best).neuron_forward, torch.device("cpu")
    able = [b for b in registry().values() if cpu.type not in b.only_by_name and b.supports(cpu, torch.float32)[0]]
    spare = able[1]  # the next best

    def fail_for_four_steps(x, time_steps, *others):
        if time_steps == 4:
            raise BackendError("backend: no registers left")
        return original(best, x, time_steps, *others)

    monkeypatch.setattr(best, "neuron_forward", fail_for_four_steps)
    try:
        F.lif(torch.zeros(4, 1, 3))
        before = best.calls["neuron_forward"], spare.calls["neuron_forward"]
        F.lif(torch.zeros(4, 5, 3))  # of the same kind: the batch is no constant of a kernel
        F.lif(torch.zeros(3, 1, 3))
        F.lif(torch.zeros(4, 1, 3).bfloat16(), backend=spare.name)
        F.lif(torch.zeros(2, 1, 3).bfloat16())
        ran = best.calls["neuron_forward"], spare.calls["neuron_forward"]
        assert [after - b for after, b in zip(ran, before, strict=True)] == [2, 2]
        assert doctor.failures() == ["backend: no registers left"]
    finally:
        best.failures.clear()


def raised(error: BaseException) -> BaseException:
    """What an error inside Triton becomes."""
    try:
        with backends.triton._compiling():
            raise_within_triton(error)
    except Exception as found:
        return found
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("PassManager::run failed"),
        subprocess.CalledProcessError(255, ["ptxas", "-v"]),
        OSError("[Errno 28] No space left on device"),
        AssertionError("unexpected layout"),
        AttributeError("'NoneType' object has no attribute 'type'"),
        TypeError("cannot convert None of type <class 'NoneType'> to tensor"),
        IndexError("map::at"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_goes_wrong_in_triton_is_a_backend_error_with_its_cause(error):
    found = raised(error)
    assert isinstance(found, BackendError)
    assert found.__cause__ is error
    assert f"{type(error).__name__}: {error}" in str(found)


def test_the_log_holds_all_that_the_cause_said(monkeypatch, caplog):
    best = choose("", "neuron_forward", torch.zeros(1))
    if best.name == "reference":
        pytest.skip("needs another backend than the reference")
    cause = subprocess.CalledProcessError(255, ["ptxas", "-v"], output=b"ptxas info", stderr="line 9\nfatal: bad")

    def fail(*arguments):
        raise raised(cause)

    monkeypatch.setattr(best, "neuron_forward", fail)
    try:
        with caplog.at_level(logging.WARNING):
            F.lif(torch.zeros(2, 1, 3))
    finally:
        best.failures.clear()
    (record,) = caplog.records
    assert all(line in record.getMessage() for line in ("exit status 255", "ptxas info", "line 9\nfatal: bad"))


def test_sizes_are_no_kinds_of_their_own():
    x = torch.zeros(16)
    kinds = {backends._kind(("unpack_spikes", x, numel, x.dtype)) for numel in range(100, 10_000)}
    assert len(kinds) == len({1, 2, 4, 8, 16})
    kept = [Bits(torch.zeros(2, dtype=torch.uint8), (m, 1, 2, 2), True) for m in (1, 2, 3)]
    assert len({backends._kind(bits) for bits in kept}) == 1
    layouts = (
        torch.zeros(2, 2, 4, 3, 3),
        torch.zeros(4, 4, 3, 3).to(memory_format=torch.channels_last).unflatten(0, (2, 2)),
    )
    assert len({backends._kind(z) for z in layouts}) == 2


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        MemoryError(),
    ],
    ids=["out of memory", "illegal access", "assert", "no memory for a kernel", "host memory"],
)
def test_a_lack_of_memory_and_a_crashed_device_are_told_as_they_are(error):
    assert raised(error) is error


def test_what_our_own_code_refuses_is_no_failure_of_triton():
    with pytest.raises(ValueError, match="spikes: expected zeros"), backends.triton._compiling():
        raise ValueError("spikes: expected zeros and ones only, got another value")


def test_a_compilation_error_of_triton_becomes_one_sentence():
    pytest.importorskip("triton", reason="needs Triton (pip install triton)")
    from triton.runtime.errors import OutOfResources

    found = raised(OutOfResources(2, 1, "shared memory"))
    assert isinstance(found, BackendError)
    assert "'triton' failed to compile or start a kernel (OutOfResources: out of resource" in str(found)


def test_the_probe_of_a_kind_of_tensors_asks_for_their_dtype(pretended_gpu, monkeypatch):
    def forward(launcher, x, *arguments):
        if x.dtype == torch.bfloat16:
            raise_within_triton(RuntimeError("no bfloat16 in this PTX"))
        return x, None

    monkeypatch.setattr(neuron, "forward", forward)
    assert registry()["triton"].supports(CUDA, torch.float32)[0]
    ok, reason = registry()["triton"].supports(CUDA, torch.bfloat16)
    assert not ok
    assert "no bfloat16 in this PTX" in reason
