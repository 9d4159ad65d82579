"""The Triton backend: fused kernels on CUDA devices and, named explicitly, in Triton's interpreter on CPU tensors."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from .base import Backend, BatchNormGradients, Forward, NeuronGradients

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class TritonBackend(Backend):
    name = "triton"
    priority = 20
    # Not yet the default on CUDA: it has never run on a GPU.
    only_by_name = frozenset({"cpu", "cuda"})
    fix = "use a CUDA device, with triton installed (pip install 'sca_kernels[cuda]')"

    def supports(self, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
        if device.type not in ("cuda", "cpu"):
            return False, f"device type {device.type} is neither cuda nor cpu"
        if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            return False, "device type cpu takes Triton's interpreter; set TRITON_INTERPRET=1 when Python starts"
        if dtype not in _DTYPES:
            return False, f"dtype {dtype} is not float32, bfloat16 or float16"
        try:
            from .. import triton_kernels
        except ImportError as error:
            return False, f"Triton can't be imported ({error}); pip install triton"
        if device.type == "cpu":
            return triton_kernels.INTERPRETED, "Triton's interpreter (TRITON_INTERPRET=1 when Triton is imported)"
        least = (8, 0) if dtype == torch.bfloat16 else (7, 0)
        capability = torch.cuda.get_device_capability(device)
        if capability < least:
            return False, f"dtype {dtype} needs compute capability >= {least}, the device has {capability}"
        return True, f"compute capability {capability[0]}.{capability[1]}"

    def neuron_forward(self, x, time_steps, config, scale, shift, rate, v_init, mask, return_v) -> Forward:
        from ..triton_kernels import multistep

        current = multistep.Current(scale, shift, rate, v_init)
        return Forward(*multistep.forward(x, time_steps, config, current, mask, return_v))

    def neuron_backward(
        self, grad_spikes, grad_v, x, time_steps, config, scale, shift, rate, v_init
    ) -> NeuronGradients:
        from ..triton_kernels import multistep

        current = multistep.Current(scale, shift, rate, v_init)
        return NeuronGradients(*multistep.backward(grad_spikes, grad_v, x, time_steps, config, current))

    def batch_norm_forward(
        self, x, time_steps, config, weight, bias, eps, rate, v_init, mask, return_v
    ) -> tuple[Forward, Tensor, Tensor]:
        from ..triton_kernels import batch_norm

        out, mean, var = batch_norm.forward(x, time_steps, config, weight, bias, eps, rate, v_init, mask, return_v)
        return Forward(*out), mean, var

    def batch_norm_backward(
        self, grad_spikes, grad_v, x, time_steps, config, weight, bias, mean, var, eps, rate, v_init
    ) -> BatchNormGradients:
        from ..triton_kernels import batch_norm

        return BatchNormGradients(
            *batch_norm.backward(grad_spikes, grad_v, x, time_steps, config, weight, bias, mean, var, eps, rate, v_init)
        )

    def pack_spikes(self, spikes: Tensor) -> Tensor:
        from ..triton_kernels import bitpack

        return bitpack.pack(spikes)

    def unpack_spikes(self, packed: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        from ..triton_kernels import bitpack

        return bitpack.unpack(packed, numel, dtype)


BACKEND = TritonBackend
