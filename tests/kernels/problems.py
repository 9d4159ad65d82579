"""Problems for whole backends: every output of their neuron kernels by name, and activations with any strides."""

from __future__ import annotations

import math

import torch

from sca_kernels.backends import registry
from sca_kernels.layout import dense_strides, state_dtype
from sca_kernels.neurons import NEURONS, NeuronConfig
from sca_kernels.surrogates import Surrogate, resolve
from sca_kernels.testing import activation, relative_l2


def config_of(
    neuron="lif",
    tau=2.0,
    v_reset=0.0,
    decay_input=True,
    detach_reset=False,
    surrogate="atan",
    v_threshold=1.0,
    **options,
):
    surrogate = resolve(surrogate)
    return NeuronConfig(neuron, tau, v_threshold, v_reset, decay_input, detach_reset, *surrogate, **options)


def run(
    backend,
    x,
    config,
    grad=None,
    *,
    time_steps=None,
    affine=True,
    v_init=None,
    mask=None,
    grad_v=None,
    threshold=None,
    grad_h=None,
):
    """Every output of the neuron kernels on one problem, by name; with a grad_h also h."""
    steps, channels = time_steps or x.shape[0], x.shape[2]
    generator = torch.Generator().manual_seed(7)
    scale, shift = torch.rand(channels, generator=generator) + 0.5, torch.randn(channels, generator=generator)
    rate = torch.rand(channels, generator=generator) * 0.8 + 0.1
    scale, shift, rate = (z.to(state_dtype(x)) for z in (scale, shift, rate))
    rate = rate if NEURONS[config.neuron].learnable_leak else None
    prelude = (scale, shift) if affine else (None, None)
    out = {}
    forward_too, backward_too = (threshold, grad_h is not None), (threshold, grad_h)
    forward = backend.neuron_forward(x, steps, config, *prelude, rate, v_init, mask, True, None, *forward_too)
    out |= {f"forward.{k}": v for k, v in forward._asdict().items()}
    backward = backend.neuron_backward(grad, grad_v, x, steps, config, *prelude, rate, v_init, *backward_too)
    out |= {f"backward.{k}": v for k, v in backward._asdict().items()}
    problem = (x, steps, config, scale, shift, 1e-5, rate, v_init, mask, True, None, None, *forward_too)
    fused, norm = backend.batch_norm_forward(*problem)
    out |= {f"norm.{name}": z for name, z in zip(("mean", "var", "scale", "shift"), norm, strict=True)}
    # Statistics may differ in their last bits, and spikes with them: behind its own, the neuron is the reference's.
    reference = registry()["reference"]
    given = rate, v_init, mask, True, None, *forward_too
    behind = reference.neuron_forward(x, steps, config, norm[2], norm[3], *given)
    for name in ("spikes", "spike_count", "v", *(["h"] if grad_h is not None else [])):
        assert torch.equal(getattr(fused, name), getattr(behind, name)), f"norm.{name}"
    torch.testing.assert_close(fused.membrane_l1, behind.membrane_l1, rtol=1e-5, atol=1e-6)
    norm = reference.batch_norm_forward(*problem)[1]  # and the same problem for all backends
    backward = backend.batch_norm_backward(
        grad, grad_v, x, steps, config, scale, shift, norm, 1e-5, rate, v_init, None, *backward_too
    )
    out |= {f"norm_backward.{k}": v for k, v in backward._asdict().items()}
    center = slope = shift
    parts = grad, grad_v, x, steps, config, scale, shift, center
    out["parts.moments"] = backend.moments(x, steps)
    out["parts.sums"] = backend.batch_norm_sums(*parts, rate, v_init, *backward_too)
    out["parts.x"], out["parts.v_init"] = backend.batch_norm_gradient(*parts, slope, scale, rate, v_init, *backward_too)
    return {k: v for k, v in out.items() if isinstance(v, torch.Tensor)}


# Taken in float32: a mean, and the shift that is made of it, is as good as the deviation, here about one, allows.
ABSOLUTE, RELATIVE = {"rtol": 3e-7, "atol": 5e-7}, {"rtol": 6e-7, "atol": 0}
STATISTICS = {"norm.mean": ABSOLUTE, "norm.var": RELATIVE, "norm.scale": RELATIVE, "norm.shift": ABSOLUTE}


def assert_agrees(ours, truth, bound=2e-6):
    """Spikes, counts and potentials equal, everything else within a relative bound. (Spikes behind batch norm are
    compared behind the same statistics, by :func:`run`.)"""
    assert ours.keys() == truth.keys()
    for name, expected in truth.items():
        assert ours[name].dtype == expected.dtype, name
        assert ours[name].stride() == expected.stride(), name
        if name.endswith(("spikes", "spike_count", "forward.v", "forward.h")):
            assert torch.equal(ours[name], expected), name
        elif name in STATISTICS:
            torch.testing.assert_close(ours[name], expected, **STATISTICS[name])
        else:
            # Batch norm of a value or two has no gradient but rounding's: there nothing relative can be asked.
            vanishes = name == "norm_backward.x" and expected.abs().max() < 1e-5
            assert vanishes or relative_l2(ours[name], expected) <= bound, name
            assert not vanishes or ours[name].abs().max() < 1e-5, name


def bound_of(dtype):
    return {torch.float32: 2e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}[dtype]


def _thresholds(channels):
    return torch.linspace(0.5, 1.25, channels)


def _quarters(channels):
    return torch.arange(channels) % 4 * 0.25 + 0.5


OPTIONS = {
    "fires above": (config_of(v_reset=None, fire=">"), {"affine": False}),
    "fires above, hard": (config_of("if", fire=">", v_threshold=0.75), {"affine": False}),
    "subtracts": (config_of(v_reset=None, v_subtract=0.75, tau=3.0), {}),
    "rests apart": (config_of(v_reset=0.25, v_rest=-0.125, tau=3.0), {}),
    "rests apart, soft": (config_of("plif", v_reset=None, v_rest=0.25, decay_input=False), {}),
    "decay": (config_of(v_reset=-0.25, decay=0.9, decay_input=False), {}),
    "decay, soft": (config_of(v_reset=None, decay=0.7, decay_input=False, v_rest=0.1, fire=">"), {"affine": False}),
    "rate": (config_of(leak_rate=0.3), {}),
    "rate, input in full": (config_of(leak_rate=0.3, decay_input=False, v_reset=None), {}),
    "scaled": (config_of("plif", surrogate=Surrogate("sigmoid", 4.0, scale=0.6)), {}),
    "never fires": (config_of(v_threshold=math.inf, decay=0.8, decay_input=False), {}),
    "never fires, soft": (config_of("if", v_threshold=math.inf, v_reset=None), {}),
    "thresholds": (config_of(), {"threshold": _thresholds}),
    "thresholds, above": (config_of("if", fire=">", v_reset=-0.25), {"threshold": _quarters, "affine": False}),
    "thresholds, soft": (config_of("plif", v_reset=None), {"threshold": _thresholds}),
    "thresholds, soft and above": (config_of(v_reset=None, fire=">"), {"threshold": _quarters, "affine": False}),
    "thresholds, subtracts": (config_of("plif", v_reset=None, v_subtract=0.5), {"threshold": _thresholds}),
    "thresholds, detached": (config_of(v_reset=None, detach_reset=True), {"threshold": _thresholds}),
    "thresholds that never fire": (config_of("plif", v_threshold=math.inf), {"threshold": _thresholds}),
    "piecewise_exp": (config_of(surrogate="piecewise_exp"), {}),
    "triangle": (config_of(surrogate="triangle"), {}),
    "fast_sigmoid": (config_of(v_reset=None, surrogate="fast_sigmoid"), {}),
}
"""Configurations beyond the defaults, and arguments of :func:`run` for them; a function stands for a vector, of so many
channels."""


def problem_of(option, shape, channels_last=False, dtype=torch.float32, repeated=False, expanded=False):
    """x and arguments of :func:`run` for one of :data:`OPTIONS`: multiples of a quarter, of which potentials meet
    thresholds; ``repeated``: one step of x; ``expanded``: of the potentials' gradients."""
    config, given = OPTIONS[option]
    steps, *state = shape
    x = activation((1 if repeated else steps, *state), dtype, channels_last)
    x.copy_((x * 4).round() / 4)
    given = {name: z(shape[2]) if callable(z) else z for name, z in given.items()}
    grad_h = torch.randn(1, *state).expand(shape) if expanded else torch.randn(shape)
    return {
        "x": x,
        "config": config,
        "grad": torch.randn(shape).to(dtype),
        "time_steps": steps,
        "v_init": torch.randn(state),
        "mask": torch.arange(shape[2]) % 3 != 1,
        "grad_v": torch.randn(state),
        "grad_h": grad_h,
        **given,
    }


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
