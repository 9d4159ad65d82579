"""The Triton backend: fused kernels on CUDA devices and, named explicitly, in Triton's interpreter on CPU tensors."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator

import torch
from torch import Tensor

from ..channels import Channels
from ..gpu import batch_norm, neuron
from ..gpu.neuron import Current
from ..neurons import NeuronConfig
from .base import (
    Backend,
    BackendError,
    BatchNormGradients,
    Forward,
    NeuronGradients,
    in_full,
    sentence,
    would_fail_anywhere,
)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PROBED = NeuronConfig("lif", 2.0, 1.0, 0.0, True, False, "atan", 2.0, 0.0)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


@functools.cache
def _obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why Triton can't compile, load and start a neuron's kernels on a CUDA device; None where it can. Found by trying
    a small forward and backward, once per process: a driver too old, a missing C compiler, an unknown GPU or a release
    of Triton that refuses our kernels show nowhere else."""
    try:
        from ..triton_kernels import launcher

        x, current = torch.zeros(2, 1, 1, 4, dtype=dtype, device=device), Current()
        with _compiling():
            spikes = neuron.forward(launcher, x, 2, _PROBED, current, None, True)[0]
            neuron.backward(launcher, spikes, None, x, 2, _PROBED, current)
    except Exception as error:  # whatever it is, it is the reason
        if would_fail_anywhere(error):
            raise
        cause = error.__cause__ if isinstance(error, BackendError) else error
        return f"Triton can't run a neuron's kernels on {device} ({in_full(cause)})"
    return None


def _is_from_triton(error: BaseException) -> bool:
    """Whether an exception was raised inside Triton, or in what it called (ptxas, the C compiler, the driver)."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] == "triton":
            return True
        trace = trace.tb_next
    return False


@contextlib.contextmanager
def _compiling() -> Iterator[None]:
    """Make whatever goes wrong in Triton a BackendError with its cause: its own errors, RuntimeError of MLIR's passes,
    what ptxas and the C compiler say, OSError of the cache. What our own code raises, a lack of memory and a crashed
    device, with which nothing else would work either, stay what they are."""
    try:
        yield
    except Exception as error:
        if would_fail_anywhere(error) or not _is_from_triton(error):
            raise
        message = f"backend: 'triton' failed to compile or start a kernel ({sentence(error)})"
        raise BackendError(f"{message}; name another backend, or none for the best that works") from error


class TritonBackend(Backend):
    name = "triton"
    priority = 20
    only_by_name = frozenset({"cpu"})
    hands_over_addresses = False
    paths = frozenset({"implicit"})
    fix = "use a CUDA device, with triton installed (pip install 'sca_kernels[triton]')"

    def supports(self, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
        if device.type not in ("cuda", "cpu"):
            return False, f"device type {device.type} is neither cuda nor cpu"
        if dtype not in _DTYPES:
            return False, f"dtype {dtype} is not float32, bfloat16 or float16"
        if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            return False, (
                "device cpu takes Triton's interpreter: move the tensor to a CUDA device, "
                "or set TRITON_INTERPRET=1 when Python starts"
            )
        try:
            from .. import triton_kernels
        except Exception as error:  # absent, broken, or made for another Python or NumPy
            return False, f"Triton can't be imported ({_first_line(error)}); pip install 'sca_kernels[triton]'"
        if device.type == "cpu":
            return triton_kernels.INTERPRETED, "Triton's interpreter (TRITON_INTERPRET=1 when Triton is imported)"
        if triton_kernels.INTERPRETED:
            return False, "TRITON_INTERPRET=1 is set: Triton interprets, on CPU tensors, and compiles nothing"
        try:
            capability = torch.cuda.get_device_capability(device)
        except (RuntimeError, AssertionError) as error:  # no driver, or one too old; a torch without CUDA
            return False, f"CUDA can't be used ({_first_line(error)})"
        least = (8, 0) if dtype == torch.bfloat16 else (7, 0)
        if capability < least:
            return False, f"dtype {dtype} needs compute capability >= {least}, the device has {capability}"
        numbered = torch.device("cuda", torch.cuda.current_device()) if device.index is None else device
        obstacle = _obstacle(numbered, dtype)
        return obstacle is None, obstacle or f"compute capability {capability[0]}.{capability[1]}"

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
        from ..triton_kernels import launcher

        current = Current(scale, shift, rate, v_init, threshold)
        arguments = x, time_steps, config, current, mask, return_v, tracking, return_h
        with _compiling():
            return Forward(**neuron.forward(launcher, *arguments)._asdict(), has_tracked=True)

    def neuron_backward(
        self, grad_spikes, grad_v, x, time_steps, config, scale, shift, rate, v_init, threshold=None, grad_h=None
    ) -> NeuronGradients:
        from ..triton_kernels import launcher

        arguments = grad_spikes, grad_v, x, time_steps, config, Current(scale, shift, rate, v_init, threshold), grad_h
        with _compiling():
            return NeuronGradients(*neuron.backward(launcher, *arguments))

    def batch_norm_forward(self, *arguments) -> tuple[Forward, Tensor]:
        from ..triton_kernels import launcher

        with _compiling():
            out, norm = batch_norm.forward(launcher, *arguments)
        return Forward(**out._asdict(), has_tracked=True), norm

    def batch_norm_backward(self, *arguments) -> BatchNormGradients:
        from ..triton_kernels import launcher

        with _compiling():
            return BatchNormGradients(*batch_norm.backward(launcher, *arguments))

    def batch_norm_inference(self, *arguments) -> Forward:
        from ..triton_kernels import launcher

        with _compiling():
            return Forward(**batch_norm.inference(launcher, *arguments)._asdict())

    def moments(self, x: Tensor, time_steps: int) -> Tensor:
        from ..triton_kernels import launcher

        with _compiling():
            return batch_norm.moments(launcher, x)

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
        from ..triton_kernels import launcher

        arguments = grad_spikes, grad_v, x, time_steps, config, Current(scale, shift, rate, v_init, threshold)
        with _compiling():
            return batch_norm.sums(launcher, *arguments, center, grad_h)

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
        from ..triton_kernels import launcher

        vectors = {"center": center, "slope": slope, "offset": offset}
        arguments = grad_spikes, grad_v, x, time_steps, config, Current(scale, shift, rate, v_init, threshold), grad_h
        with _compiling():
            return batch_norm.gradient(launcher, *arguments, **vectors)

    def gather_weight(
        self, weight: Tensor, bias: Tensor | None, channels: Channels, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        if channels.input is None and channels.output is None:
            return super().gather_weight(weight, bias, channels, dtype)
        from ..triton_kernels import weights

        with _compiling():
            return weights.gather(weight, bias, channels, dtype)

    def scatter_weight(
        self, block: Tensor | None, bias: Tensor | None, like: Tensor, channels: Channels
    ) -> tuple[Tensor | None, Tensor | None]:
        if block is None or (channels.input is None and channels.output is None):
            return super().scatter_weight(block, bias, like, channels)
        from ..triton_kernels import weights

        with _compiling():
            return weights.scatter(block, bias, like, channels)

    def channel_conv2d(self, x, weight, bias, geometry, channels, full_output, path) -> tuple[Tensor, Tensor | None]:
        if path != "implicit":
            return super().channel_conv2d(x, weight, bias, geometry, channels, full_output, path)
        from ..triton_kernels import channel_conv

        with _compiling():
            return channel_conv.forward(x, weight, bias, geometry, channels, full_output), None

    def channel_conv2d_backward(
        self, grad, x, weight, block, geometry, channels, needed, path
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if path != "implicit":
            return super().channel_conv2d_backward(grad, x, weight, block, geometry, channels, needed, path)
        from ..triton_kernels import channel_conv

        with _compiling():
            return channel_conv.backward(grad, self.unpacked(x, grad.dtype), weight, geometry, channels, needed)

    def pack_spikes(self, spikes: Tensor) -> Tensor:
        from ..triton_kernels import bitpack

        with _compiling():
            return bitpack.pack(spikes)

    def unpack_spikes(self, packed: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        from ..triton_kernels import bitpack

        with _compiling():
            return bitpack.unpack(packed, numel, dtype)


BACKEND = TritonBackend
