"""Problems for whole backends: every output of their neuron kernels by name, and activations with any strides."""

from __future__ import annotations

import torch

from sca_kernels.layout import dense_strides, state_dtype
from sca_kernels.neurons import NEURONS, NeuronConfig
from sca_kernels.surrogates import resolve
from sca_kernels.testing import activation


def config_of(neuron="lif", tau=2.0, v_reset=0.0, decay_input=True, detach_reset=False, surrogate="atan"):
    return NeuronConfig(neuron, tau, 1.0, v_reset, decay_input, detach_reset, *resolve(surrogate))


def run(backend, x, config, grad=None, *, time_steps=None, affine=True, v_init=None, mask=None, grad_v=None):
    """Every output of the neuron kernels on one problem, by name."""
    steps, channels = time_steps or x.shape[0], x.shape[2]
    generator = torch.Generator().manual_seed(7)
    scale, shift = torch.rand(channels, generator=generator) + 0.5, torch.randn(channels, generator=generator)
    rate = torch.rand(channels, generator=generator) * 0.8 + 0.1
    scale, shift, rate = (z.to(state_dtype(x)) for z in (scale, shift, rate))
    rate = rate if NEURONS[config.neuron].learnable_leak else None
    prelude = (scale, shift) if affine else (None, None)
    out = {}
    forward = backend.neuron_forward(x, steps, config, *prelude, rate, v_init, mask, True)
    out |= {f"forward.{k}": v for k, v in forward._asdict().items()}
    backward = backend.neuron_backward(grad, grad_v, x, steps, config, *prelude, rate, v_init)
    out |= {f"backward.{k}": v for k, v in backward._asdict().items()}
    fused, mean, var = backend.batch_norm_forward(x, steps, config, scale, shift, 1e-5, rate, v_init, mask, True)
    out |= {f"norm.{k}": v for k, v in fused._asdict().items()} | {"norm.mean": mean, "norm.var": var}
    norm = (scale, shift, mean, var, 1e-5, rate, v_init)
    backward = backend.batch_norm_backward(grad, grad_v, x, steps, config, *norm)
    out |= {f"norm_backward.{k}": v for k, v in backward._asdict().items()}
    center = slope = shift
    parts = grad, grad_v, x, steps, config, scale, shift, center
    out |= {"parts.moments": backend.moments(x, steps), "parts.sums": backend.batch_norm_sums(*parts, rate, v_init)}
    out["parts.x"], out["parts.v_init"] = backend.batch_norm_gradient(*parts, slope, scale, rate, v_init)
    return {k: v for k, v in out.items() if isinstance(v, torch.Tensor)}


def views(x):
    """x [T, N, C, H, W] as other strides present the same values, with what kernels run on without a copy."""
    t, n, c, h, w = x.shape
    wide = torch.randn(t, n + 1, c + 3, h, w)
    wide[:, 1:, 2:-1] = x
    last = torch.empty_strided(wide.shape, dense_strides(wide.shape, True)).copy_(wide)
    return {
        "contiguous": x.contiguous(),
        "channels_last": activation(x.shape, channels_last=True).copy_(x),
        "sliced": wide[:, 1:, 2:-1],
        "sliced channels_last": last[:, 1:, 2:-1],
        "batch first": x.transpose(0, 1).contiguous().transpose(0, 1),
        "channels first": x.permute(2, 0, 1, 3, 4).contiguous().permute(1, 2, 0, 3, 4),
    }
