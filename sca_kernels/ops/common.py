"""What the operators share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from ..backends.base import Forward
from ..layout import empty_activation, empty_state, state_dtype


class NotANumber(ValueError):
    """A neuron's potential became NaN."""


def operator(implementation: Callable[..., Any]) -> OpOverload:
    """Define ``sca_kernels::<name>``, with the schema that the annotations of its implementation give.

    What ``torch.library.custom_op`` does beyond that, in Python and at every call, costs more than a small layer's
    kernels: it looks up defaults that no operator here has, and compares storages that none shares.
    """
    name = f"sca_kernels::{implementation.__name__}"
    schema = torch.library.infer_schema(implementation, mutates_args=())
    torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(name, "CompositeExplicitAutograd", torch._disable_dynamo(implementation))
    return getattr(torch.ops.sca_kernels, implementation.__name__).default


def differentiable(
    op: OpOverload, backward: Callable[..., Any], setup_context: Callable[[Any, tuple, Any], None] | None = None
) -> None:
    """Give an operator its gradient, by functions as ``torch.library.register_autograd`` takes them."""

    def below(*arguments):
        with torch._C._AutoDispatchBelowAutograd():
            return op(*arguments)

    def forward(ctx, *arguments):
        output = below(*arguments)
        if setup_context is not None:
            setup_context(ctx, arguments, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function = type(f"{op._opname}_function", (torch.autograd.Function,), members)

    def autograd(*arguments):
        recorded = torch.is_grad_enabled() and any(isinstance(z, Tensor) and z.requires_grad for z in arguments)
        return (function.apply if recorded else below)(*arguments)

    torch.library.impl(f"{op.namespace}::{op._opname}", "Autograd", autograd)


def no_second_order(op: OpOverload) -> None:
    """Make differentiating a backward operator a clear error."""

    def refuse(ctx, *grads):
        raise RuntimeError(
            f"{op}: second-order gradients through spiking neurons are not defined; "
            "a surrogate replaces the first derivative only. Call backward() without create_graph=True."
        )

    differentiable(op, refuse)


def or_empty(z: Tensor | None, x: Tensor) -> Tensor:
    """Operators can't return None: an output that was not asked for is a tensor without elements."""
    return x.new_empty(0, dtype=state_dtype(x)) if z is None else z


def forward_outputs(out: Forward, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """NotANumber where a potential has become NaN: the membrane sums tell without another pass over x. Asking a CUDA
    device would mean to wait for it."""
    if x.device.type == "cpu" and math.isnan(out.membrane_l1.sum()):
        channels = out.membrane_l1.isnan().nonzero().flatten().tolist()
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
