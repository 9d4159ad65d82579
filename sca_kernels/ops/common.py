"""What the operators share."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends.base import Forward
from ..layout import empty_activation, empty_state, state_dtype


class NotANumber(ValueError):
    """A neuron's potential became NaN."""


def or_empty(z: Tensor | None, x: Tensor) -> Tensor:
    """Operators can't return None: an output that was not asked for is a tensor without elements."""
    return x.new_empty(0, dtype=state_dtype(x)) if z is None else z


def forward_outputs(out: Forward, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """NotANumber where a potential has become NaN: the membrane sums tell without another pass over x. Asking a CUDA
    device would mean to wait for it."""
    if x.device.type == "cpu" and (nan := out.membrane_l1.isnan()).any():
        channels = nan.nonzero().flatten().tolist()
        listed = ", ".join(map(str, channels[:8])) + (", ..." if len(channels) > 8 else "")
        raise NotANumber(f"x: expected numbers, got NaN (there, or in what scales it) in channels {listed}")
    return out.spikes, or_empty(out.v, x), out.spike_count, out.membrane_l1


def fake_forward(x: Tensor, time_steps: int, return_v: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    channels = x.shape[2]
    return (
        empty_activation(x, time_steps),
        empty_state(x, state_dtype(x)) if return_v else or_empty(None, x),
        x.new_empty(channels, dtype=torch.int64),
        x.new_empty(channels, dtype=torch.float32),
    )


def fake_gradient(z: Tensor | None, x: Tensor) -> Tensor:
    """Gradient of a [C] vector or None."""
    return or_empty(None, x) if z is None else torch.empty_like(z)


def no_second_order(op) -> None:
    """Make differentiating a backward operator a clear error."""

    def refuse(ctx, *grads):
        raise RuntimeError(
            f"{op._opoverload}: second-order gradients through spiking neurons are not defined; "
            "a surrogate replaces the first derivative only. Call backward() without create_graph=True."
        )

    op.register_autograd(refuse)
