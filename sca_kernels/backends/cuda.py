"""The CUDA backend: the kernels of ``csrc/cuda``, compiled ahead by ``setup.py`` (``sca_kernels._cuda``) or, where that
module is not there, at first use from the same source through CuPy.

Loaded at the first choice of a backend for a CUDA device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..cuda_kernels import batch_norm, bitpack, multistep
from ..cuda_kernels.multistep import Current
from .base import Backend, BatchNormGradients, Forward, NeuronGradients


class CudaBackend(Backend):
    name = "cuda"
    priority = 15

    def supports(self, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
        return False, "todo"

    @property
    def launch(self):
        raise NotImplementedError

    def neuron_forward(self, x, time_steps, config, scale, shift, rate, v_init, mask, return_v) -> Forward:
        current = Current(scale, shift, rate, v_init)
        return Forward(*multistep.forward(self.launch, x, time_steps, config, current, mask, return_v))

    def neuron_backward(
        self, grad_spikes, grad_v, x, time_steps, config, scale, shift, rate, v_init
    ) -> NeuronGradients:
        current = Current(scale, shift, rate, v_init)
        return NeuronGradients(
            *multistep.backward(self.launch, grad_spikes, grad_v, x, time_steps, config, current)
        )

    def batch_norm_forward(
        self, x, time_steps, config, weight, bias, eps, rate, v_init, mask, return_v
    ) -> tuple[Forward, Tensor, Tensor]:
        arguments = x, time_steps, config, weight, bias, eps, rate, v_init, mask, return_v
        out, mean, var = batch_norm.forward(self.launch, *arguments)
        return Forward(*out), mean, var

    def batch_norm_backward(
        self, grad_spikes, grad_v, x, time_steps, config, weight, bias, mean, var, eps, rate, v_init
    ) -> BatchNormGradients:
        arguments = grad_spikes, grad_v, x, time_steps, config, weight, bias, mean, var, eps, rate, v_init
        return BatchNormGradients(*batch_norm.backward(self.launch, *arguments))

    def pack_spikes(self, spikes: Tensor) -> Tensor:
        return bitpack.pack(self.launch, spikes)

    def unpack_spikes(self, packed: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        return bitpack.unpack(self.launch, packed, numel, dtype)


BACKEND = CudaBackend
