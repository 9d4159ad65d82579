"""What this machine can run, what it can't, why, and what to do about it."""

from __future__ import annotations

import platform
from typing import NamedTuple

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
    if torch.cuda.is_available():
        devices += [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    rows = [
        Row("python", True, f"{platform.python_version()} on {platform.machine()}", ""),
        Row("torch", True, f"{torch.__version__}, {torch.get_num_threads()} threads", ""),
        _cuda_row(),
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


def _backend_row(backend: Backend, devices: list[torch.device]) -> Row:
    reasons = []
    for device in devices:
        ok, reason = backend.supports(device, torch.float32)
        if ok:
            error = self_test(backend.name, device)
            if error is not None:
                return Row(
                    backend.name,
                    False,
                    f"{device}: self-test failed: {error}",
                    "please report this with `sca doctor`'s output",
                )
            reasons.append(f"{device}: {reason}, self-test passed")
    if reasons:
        return Row(backend.name, True, "; ".join(reasons), "")
    return Row(backend.name, False, reason, backend.fix)


def self_test(backend: str, device: torch.device) -> str | None:
    """Forward and backward of batch norm + LIF on this device against float64 on the CPU; None, or what is wrong."""
    generator = torch.random.get_rng_state()
    try:
        torch.manual_seed(0)
        x64 = activation((4, 2, 5, 3, 3), torch.float64)
    finally:
        torch.random.set_rng_state(generator)
    results = []
    for x, name in ((x64, "reference"), (x64.float().to(device), backend)):
        x.requires_grad_()
        weight, bias = (torch.full((5,), value, dtype=x.dtype, device=x.device) for value in (1.2, 0.4))
        out = F.batch_norm_lif(x, weight, bias, None, None, True, backend=name)
        out.spikes.mul(0.5).sum().backward()
        results.append((out, x.grad))
    (truth, truth_grad), (out, grad) = results
    if not torch.equal(out.spike_count.cpu(), truth.spike_count):
        return f"spike counts {out.spike_count.tolist()}, expected {truth.spike_count.tolist()}"
    error = relative_l2(grad, truth_grad)
    return None if error <= 1e-5 else f"gradients are off by {error:.1e} (relative L2)"
