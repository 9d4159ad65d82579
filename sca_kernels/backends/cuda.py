"""The CUDA backend: the kernels of ``csrc/cuda``, compiled ahead by ``setup.py`` (``sca_kernels._cuda``) or, where that
module is not there, at their first use from the same source through CuPy.

Both ways start kernels by the same names with the same structures; what is started, and how, :mod:`..gpu` and
:mod:`..cuda_kernels` decide.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..cuda_kernels import bitpack
from ..cuda_kernels.launcher import CudaLauncher
from ..cuda_kernels.parameters import NAMES, SIZES
from ..gpu import batch_norm, neuron
from ..gpu.neuron import Current
from ..twins import sources
from .base import Backend, BackendError, BatchNormGradients, Forward, NeuronGradients, sentence, would_fail_anywhere

_LEAST_CAPABILITY = (7, 5)
_FIX = (
    "install where nvcc and the GPU are (or with TORCH_CUDA_ARCH_LIST set), or pip install 'sca_kernels[cupy]', which "
    "compiles the kernels at run time"
)
# No fused multiply-add, no fast math: float32 spikes equal those of every other backend.
_OPTIONS = ("-std=c++17", "--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false")
# What nvcc has and NVRTC lacks: lambdas that are device code by their place, and the host compiler's builtins.
_OPTIONS += ("--device-as-default-execution-space", "-D__builtin_memcpy=memcpy")


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


class Compiled:
    """Kernels that ``setup.py`` has compiled."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.versions = module.driver_version(), module.runtime_version
        listed = [entry.partition("+") for entry in module.architectures.split(";")]
        self.architectures = [(tuple(map(int, number.split("."))), suffix == "PTX") for number, _, suffix in listed]

    def supports(self, capability: tuple[int, int]) -> tuple[bool, str]:
        # Machine code runs on later devices of its own generation, PTX on all later ones.
        if any(
            architecture <= capability and (ptx or architecture[0] == capability[0])
            for architecture, ptx in self.architectures
        ):
            return True, f"compute capability {_dotted(capability)}, compiled for {self.module.architectures}"
        return False, (
            f"the kernels were compiled for {self.module.architectures}, the device has compute capability "
            f"{_dotted(capability)}; install again with TORCH_CUDA_ARCH_LIST={_dotted(capability)}"
        )

    def start(self, kernel: str, grid: int, threads: int, shared: int, parameters: bytes, device: int, stream: int):
        try:
            self.module.launch(kernel, grid, threads, shared, parameters, device, stream)
        except RuntimeError as error:
            if would_fail_anywhere(error):
                raise
            raise BackendError(str(error)) from error


class RunTime:
    """Kernels compiled by NVRTC, through CuPy, which keeps the results on disk."""

    def __init__(self, cupy: ModuleType) -> None:
        self.cupy = cupy
        self.versions = cupy.cuda.runtime.driverGetVersion(), cupy.cuda.runtime.runtimeGetVersion()

    def supports(self, capability: tuple[int, int]) -> tuple[bool, str]:
        return True, f"compute capability {_dotted(capability)}, compiled at run time by CuPy {self.cupy.__version__}"

    @functools.cache  # noqa: B019  one object per process
    def kernel(self, expression: str) -> Any:
        """One kernel's template, instantiated; CuPy compiles and loads it per device."""
        code, options = program()
        return self.cupy.RawModule(code=code, options=options, name_expressions=(expression,)).get_function(expression)

    def start(self, kernel: str, grid: int, threads: int, shared: int, parameters: bytes, device: int, stream: int):
        arguments = (ctypes.c_void_p * 1)(ctypes.cast(parameters, ctypes.c_void_p).value)
        with self.cupy.cuda.Device(device):
            try:
                function = self.kernel(kernel).kernel.ptr
                self.cupy.cuda.driver.launchKernel(
                    *(function, grid, 1, 1, threads, 1, 1, shared, stream, ctypes.addressof(arguments), 0)
                )
            except Exception as error:  # of NVRTC, of CuPy's cache on disk, of the driver
                if would_fail_anywhere(error):
                    raise
                raise BackendError(f"backend cuda: CuPy can't compile or start {kernel}: {sentence(error)}") from error


def program() -> tuple[str, tuple[str, ...]]:
    """Source text and options for NVRTC. It checks that structures have the size that they are packed in."""
    sizes = ",".join(map(str, SIZES.values()))
    return '#include "cuda/kernels.h"\n', (*_OPTIONS, f"-I{sources()}", f"-DSCA_SIZES={sizes}")


@functools.cache
def _kernels() -> Compiled | RunTime | str:
    """Whoever can start kernels here, or why nobody can; asked once per process."""
    try:
        kernels = Compiled(importlib.import_module("sca_kernels._cuda"))
        if kernels.module.sizes != SIZES:
            return "the compiled module is out of date; pip install again"
    except (ImportError, RuntimeError) as error:
        try:
            kernels = RunTime(importlib.import_module("cupy"))
        except Exception as other:  # absent, broken, or made for another Python or NumPy
            return f"neither the compiled module nor CuPy can be loaded ({error}; {other}); {_FIX}"
    driver, runtime = kernels.versions
    if driver // 1000 < runtime // 1000:
        return (
            f"the driver supports CUDA {_version(driver)}, the kernels need {runtime // 1000}.0; update the NVIDIA "
            "driver, or install with an older CUDA"
        )
    return kernels


class CudaBackend(Backend):
    name = "cuda"
    priority = 15
    fix = _FIX

    def supports(self, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
        if device.type != "cuda":
            return False, f"device type {device.type} is not cuda"
        if dtype not in NAMES:
            return False, f"dtype {dtype} is not float32, bfloat16 or float16"
        if not torch.cuda.is_available():
            return False, "torch finds no CUDA device, or no driver; check nvidia-smi, and that torch is a CUDA build"
        kernels = _kernels()
        if isinstance(kernels, str):
            return False, kernels
        capability = torch.cuda.get_device_capability(device)
        if capability < _LEAST_CAPABILITY:
            return False, (
                f"the device has compute capability {_dotted(capability)}, the kernels need "
                f"{_dotted(_LEAST_CAPABILITY)}; use another device or backend"
            )
        return kernels.supports(capability)

    def launch(
        self, kernel: str, grid: int, threads: int, shared: int, parameters: ctypes.Structure, on: Tensor
    ) -> None:
        """A :class:`~sca_kernels.cuda_kernels.parameters.Launch`."""
        with torch.cuda.device(on.device):
            stream = torch.cuda.current_stream(on.device).cuda_stream
            _kernels().start(kernel, grid, threads, shared, bytes(parameters), on.device.index, stream)

    @property
    def _launcher(self) -> CudaLauncher:
        return CudaLauncher(self.launch)

    def neuron_forward(
        self,
        x,
        time_steps,
        config,
        scale,
        shift,
        rate,
        v_init,
        mask,
        return_v,
        tracking=None,
        threshold=None,
        return_h=False,
    ) -> Forward:
        current = Current(scale, shift, rate, v_init, threshold)
        arguments = x, time_steps, config, current, mask, return_v, tracking, return_h
        return Forward(**neuron.forward(self._launcher, *arguments)._asdict(), has_tracked=True)

    def neuron_backward(
        self, grad_spikes, grad_v, x, time_steps, config, scale, shift, rate, v_init, threshold=None, grad_h=None
    ) -> NeuronGradients:
        arguments = grad_spikes, grad_v, x, time_steps, config, Current(scale, shift, rate, v_init, threshold), grad_h
        return NeuronGradients(*neuron.backward(self._launcher, *arguments))

    def batch_norm_forward(self, *arguments) -> tuple[Forward, Tensor]:
        out, norm = batch_norm.forward(self._launcher, *arguments)
        return Forward(**out._asdict(), has_tracked=True), norm

    def batch_norm_backward(self, *arguments) -> BatchNormGradients:
        return BatchNormGradients(*batch_norm.backward(self._launcher, *arguments))

    def batch_norm_inference(self, *arguments) -> Forward:
        return Forward(**batch_norm.inference(self._launcher, *arguments)._asdict())

    def moments(self, x: Tensor, time_steps: int) -> Tensor:
        return batch_norm.moments(self._launcher, x)

    def batch_norm_sums(
        self,
        grad_spikes,
        grad_v,
        x,
        time_steps,
        config,
        scale,
        shift,
        center,
        rate,
        v_init,
        threshold=None,
        grad_h=None,
    ) -> Tensor:
        arguments = grad_spikes, grad_v, x, time_steps, config, Current(scale, shift, rate, v_init, threshold)
        return batch_norm.sums(self._launcher, *arguments, center, grad_h)

    def batch_norm_gradient(
        self,
        grad_spikes,
        grad_v,
        x,
        time_steps,
        config,
        scale,
        shift,
        center,
        slope,
        offset,
        rate,
        v_init,
        threshold=None,
        grad_h=None,
    ) -> tuple[Tensor, Tensor | None]:
        arguments = grad_spikes, grad_v, x, time_steps, config, Current(scale, shift, rate, v_init, threshold), grad_h
        vectors = {"center": center, "slope": slope, "offset": offset}
        return batch_norm.gradient(self._launcher, *arguments, **vectors)

    def pack_spikes(self, spikes: Tensor) -> Tensor:
        return bitpack.pack(self.launch, spikes)

    def unpack_spikes(self, packed: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        return bitpack.unpack(self.launch, packed, numel, dtype)


BACKEND = CudaBackend
