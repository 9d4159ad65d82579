"""The reference backend: plain PyTorch on any device and dtype. Slow, memory-hungry, and the definition of correct."""

from __future__ import annotations

import torch
from torch import Tensor

from ..channels import at_length, at_width
from ..layout import empty_activation, empty_state, spatial_size
from ..reference import batch_norm, bitpack, multistep
from ..reference.multistep import Prelude
from .base import Backend, BatchNormGradients, Forward, NeuronGradients


class ReferenceBackend(Backend):
    name = "reference"
    priority = 0
    hands_over_addresses = False

    def supports(self, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
        if not dtype.is_floating_point:
            return False, f"dtype {dtype} is not a floating-point dtype"
        return True, "plain PyTorch"

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
        given = Prelude(scale, shift), rate, v_init, threshold
        spikes, v, count, l1, h = multistep.forward(x, time_steps, config, *given)
        if mask is not None:
            spikes = spikes * multistep.per_channel(mask, spikes[0])
        return Forward(
            empty_activation(x, time_steps).copy_(spikes),
            empty_state(x, v.dtype).copy_(v) if return_v else None,
            count,
            l1,
            h=empty_activation(x, time_steps, h.dtype).copy_(h) if return_h else None,
        )

    def neuron_backward(
        self, grad_spikes, grad_v, x, time_steps, config, scale, shift, rate, v_init, threshold=None, grad_h=None
    ) -> NeuronGradients:
        given = Prelude(scale, shift), rate, v_init, threshold, grad_h
        g = multistep.backward(grad_spikes, grad_v, x, time_steps, config, *given)
        dims = [d for d in range(x.dim()) if d != 2]
        g_x = g.y if scale is None else g.y * multistep.per_channel(scale, g.y[0])
        return NeuronGradients(
            _dense(g_x, x),
            None if scale is None else (g.y.double() * x.double()).sum(dims).to(scale.dtype),
            None if shift is None else g.y.double().sum(dims).to(shift.dtype),
            g.rate,
            None if v_init is None else empty_state(x, g.v_init.dtype).copy_(g.v_init),
            g.threshold,
        )

    def batch_norm_forward(
        self,
        x,
        time_steps,
        config,
        weight,
        bias,
        eps,
        rate,
        v_init,
        mask,
        return_v,
        channels=None,
        tracking=None,
        threshold=None,
        return_h=False,
    ) -> tuple[Forward, Tensor]:
        mean, var = batch_norm.moments(x)
        scale, shift = batch_norm.prelude(mean, var, at_width(weight, channels, x), at_width(bias, channels, x), eps)
        behind = rate, v_init, mask, return_v, None, threshold, return_h
        out = self.neuron_forward(x, time_steps, config, scale, shift, *behind)
        return out, torch.stack((mean, var, scale, shift))

    def batch_norm_backward(
        self,
        grad_spikes,
        grad_v,
        x,
        time_steps,
        config,
        weight,
        bias,
        norm,
        eps,
        rate,
        v_init,
        channels=None,
        threshold=None,
        grad_h=None,
    ) -> BatchNormGradients:
        mean, var, *prelude = norm
        given = Prelude(*prelude), rate, v_init, threshold, grad_h
        g = multistep.backward(grad_spikes, grad_v, x, time_steps, config, *given)
        sums = batch_norm.gradient_sums(g.y, x, mean)
        presentations, count = time_steps // x.shape[0], max(time_steps * x.shape[1] * spatial_size(x), 1)
        lines = batch_norm.coefficients(sums, prelude[0], var, eps, presentations, count)
        g_weight, g_bias = sums[1] * (var.double() + eps).rsqrt(), sums[0]
        return BatchNormGradients(
            _dense(batch_norm.input_gradient(g.y, x, prelude[0], mean, *lines), x),
            None if weight is None else at_length(g_weight.to(weight.dtype), weight, channels),
            None if bias is None else at_length(g_bias.to(bias.dtype), bias, channels),
            g.rate,
            None if v_init is None else empty_state(x, g.v_init.dtype).copy_(g.v_init),
            g.threshold,
        )

    def pack_spikes(self, spikes: Tensor) -> Tensor:
        return bitpack.pack(spikes)

    def unpack_spikes(self, packed: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        return bitpack.unpack(packed, numel, dtype)


def _dense(g: Tensor, x: Tensor) -> Tensor:
    return empty_activation(x, x.shape[0]).copy_(g)


BACKEND = ReferenceBackend
