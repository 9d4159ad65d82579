"""What this machine can run, what it can't, why, and what to do about it."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from . import functional as F
from .backends import Backend, registry
from .memory import is_reusing_host_memory
from .testing import activation, relative_l2


class Row(NamedTuple):
    """One finding: what was looked at, whether it is on, what was seen, and, where it is off, what turns it on."""

    name: str
    on: bool
    detail: str
    fix: str


def report() -> list[Row]:
    """Look at versions, devices and every backend; each backend that is on runs a numeric self-test per device."""
    devices = [torch.device("cpu")]
    try:
        cuda = _cuda_row()
        devices += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    except Exception as error:  # a report never ends in a traceback
        cuda = Row("devices", False, f"CUDA can't be used ({error})", "check the NVIDIA driver and nvidia-smi")
    rows = [
        Row("python", True, f"{platform.python_version()} on {platform.machine()}", ""),
        Row("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads", ""),
        cuda,
    ]
    rows += [_backend_row(backend, devices) for backend in registry().values()]
    reusing = is_reusing_host_memory()
    fix = "" if reusing else "call sca_kernels.reuse_host_memory() first thing (glibc only); `sca train` does"
    rows.append(Row("host memory", reusing, "kept for reuse" if reusing else "paged in at every allocation", fix))
    return rows


def _cuda_row() -> Row:
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Row("devices", True, f"{', '.join(names)}; CUDA {torch.version.cuda}", "")
    if torch.version.cuda is None:
        return Row("devices", False, "this torch was built without CUDA", "install a CUDA build of torch to use a GPU")
    return Row("devices", False, "no device, or no driver", "install the NVIDIA driver; check nvidia-smi")


_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Relative L2 of gradients against float64 on the same inputs: what rounding results to the dtype costs, and a margin.
_BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3, torch.float64: 1e-12}


def _backend_row(backend: Backend, devices: list[torch.device]) -> Row:
    """What came of trying a backend, by device and dtype; it is on where anything passed and nothing that should run
    failed."""
    told, on, wrong = [], False, False
    for device in devices:
        outcomes: dict[str, list[str]] = {}
        for dtype in _DTYPES:
            ran, outcome = _outcome(backend, device, dtype)
            on, wrong = on or ran is True, wrong or ran is None
            outcomes.setdefault(outcome.replace(f"dtype {dtype} is", "dtype is"), []).append(str(dtype)[6:])
        told += [f"{device} {', '.join(names)}: {outcome}" for outcome, names in outcomes.items()]
    fix = "please report this with `sca doctor`'s output" if wrong else "" if on else backend.fix
    return Row(backend.name, on and not wrong, "; ".join(told), fix)


def _outcome(backend: Backend, device: torch.device, dtype: torch.dtype) -> tuple[bool | None, str]:
    """Whether the self-test passed (True), could not run (False) or failed (None), and what is to be told of it."""
    try:
        ok, reason = backend.supports(device, dtype)
        if not ok:
            return False, reason
        error = self_test(backend.name, device, dtype)
    except Exception as raised:  # a report never ends in a traceback
        error = f"{type(raised).__name__}: {raised}"
    return (True, f"{reason}, self-test passed") if error is None else (None, f"self-test failed: {error}")


@functools.lru_cache(maxsize=16)
def compile_problem(device: str = "cpu") -> str | None:
    """Why torch.compile can't be used for a device here; None where it can. It needs a C++ compiler, and says so only
    in a first call, at length: a small function is compiled, once per process."""
    try:
        torch.compile(_doubled)(torch.ones(2, device=device))
    except Exception as error:  # each of its parts has its own kind
        lines = (line.strip() for line in str(error).splitlines())
        return next(filter(None, lines), type(error).__name__)[:200]
    return None


def _doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def compile_row() -> Row:
    """Whether torch.compile works on the CPU; apart from :func:`report`, for it takes seconds."""
    problem = compile_problem()
    fix = "" if problem is None else "install a C++ compiler (g++), or name one in CXX"
    return Row("torch.compile", problem is None, problem or "compiles for the CPU", fix)


def backends_of(function: Callable[[], Any]) -> list[str]:
    """The backends whose operators ran, on the CPU and on all devices, while ``function()`` did."""
    before = {name: backend.calls.total() for name, backend in registry().items()}
    function()
    return [name for name, backend in registry().items() if backend.calls.total() > before[name]]


def failures() -> list[str]:
    """What kernels failed in this process, so that another backend took over."""
    return [reason for backend in registry().values() for reason in backend.failures.values()]


def self_test(backend: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str | None:
    """Forward and backward of batch norm + LIF on this device against float64 on the CPU; None, or what is wrong."""
    generator = torch.random.get_rng_state()
    try:
        torch.manual_seed(0)
        given = activation((4, 2, 5, 3, 3), dtype)
    finally:
        torch.random.set_rng_state(generator)
    results = []
    for x, name in ((given.double(), "reference"), (given.to(device, copy=True), backend)):
        x.requires_grad_()
        weight, bias = (torch.full((5,), value, dtype=x.dtype, device=x.device) for value in (1.25, 0.375))
        out = F.batch_norm_lif(x, weight, bias, None, None, True, backend=name)
        out.spikes.mul(0.5).sum().backward()
        results.append((out, x.grad))
    (truth, truth_grad), (out, grad) = results
    if not torch.equal(out.spike_count.cpu(), truth.spike_count):
        return f"spike counts {out.spike_count.tolist()}, expected {truth.spike_count.tolist()}"
    error = relative_l2(grad, truth_grad)
    return None if error <= _BOUNDS[dtype] else f"gradients are off by {error:.1e} (relative L2)"
