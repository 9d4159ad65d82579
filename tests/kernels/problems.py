"""Problems for whole backends: every output of their neuron kernels by name, and activations with any strides."""

from __future__ import annotations

import torch

from sca_kernels.backends import registry
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
    problem = (x, steps, config, scale, shift, 1e-5, rate, v_init, mask, True)
    fused, norm = backend.batch_norm_forward(*problem)
    out |= {f"norm.{name}": z for name, z in zip(("mean", "var", "scale", "shift"), norm, strict=True)}
    # Statistics may differ in their last bits, and spikes with them: behind its own, the neuron is the reference's.
    reference = registry()["reference"]
    behind = reference.neuron_forward(x, steps, config, norm[2], norm[3], rate, v_init, mask, True)
    for name in ("spikes", "spike_count", "v"):
        assert torch.equal(getattr(fused, name), getattr(behind, name)), f"norm.{name}"
    torch.testing.assert_close(fused.membrane_l1, behind.membrane_l1, rtol=1e-5, atol=1e-6)
    norm = reference.batch_norm_forward(*problem)[1]  # and the same problem for all backends
    backward = backend.batch_norm_backward(grad, grad_v, x, steps, config, scale, shift, norm, 1e-5, rate, v_init)
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
