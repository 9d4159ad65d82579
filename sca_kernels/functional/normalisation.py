"""Batch norm, alone and in front of a neuron, with its running statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import checks, ops
from ..layout import spatial_size, state_dtype
from ..ops.common import passes_nan
from ..reference.batch_norm import prelude as affine_prelude
from ..surrogates import Surrogate
from ..sync import synchronized_moments
from .arguments import (
    as_state,
    check_activation,
    check_backend,
    check_batch_norm,
    check_leak_rate,
    check_mask,
    check_neuron,
    check_v_init,
    check_vector,
)
from .multistep import NeuronOutput, as_output


def batch_norm_neuron(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    channel_mask: Tensor | None = None,
    neuron: str = "lif",
    *,
    tau: float = 2.0,
    w: Tensor | None = None,
    v_threshold: float = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    detach_reset: bool = False,
    surrogate: str | Surrogate = "atan",
    alpha: float | None = None,
    v_init: Tensor | None = None,
    time_steps: int | None = None,
    return_v: bool = True,
    process_group=None,
    backend: str | None = None,
) -> NeuronOutput:
    """Batch norm over (T, N, S) and a neuron in one operator; the normalised current is never written to memory.

    Equivalent to ``neuron(torch.nn.functional.batch_norm(x.flatten(0, 1), ...).view_as(x))``. In training (or without
    running statistics) batch statistics are used and the running ones, if given, are updated in place as torch does
    (unbiased variance); otherwise this is the neuron behind the affine prelude that the running statistics give.

    Args:
        x: [T, N, C, *S], a convolution's output; with ``time_steps``, [1, N, C, *S].
        weight, bias: [C] or None (gamma 1, beta 0).
        running_mean, running_var: [C] or None; updated in place when training.
        training: whether to use (and track) batch statistics.
        momentum: weight of the new batch in the running statistics; a number, or a tensor of one on the device of x,
            which is then not waited for.
        eps: added to the variance, > 0.
        process_group: a torch.distributed group (True: the default one) over whose ranks batch statistics are taken.
        channel_mask, and all others: see :func:`neuron`.

    Raises:
        ValueError: also when training with one value per channel, as torch.nn.functional.batch_norm.
    """
    config = check_neuron(neuron, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha)
    x, steps = check_activation(x, time_steps)
    training, momentum, eps = check_batch_norm(x, running_mean, running_var, training, momentum, eps, process_group)
    weight, bias = check_vector("weight", weight, x), check_vector("bias", bias, x)
    common = (
        check_leak_rate(w, config, x),
        check_v_init(v_init, x),
        check_mask(channel_mask, x),
        checks.boolean("return_v", return_v),
        check_backend(backend),
        *config,
    )
    if training:
        count = _count(x, steps, process_group)
        if process_group is not None:
            *moments, count = synchronized_moments(x, count, process_group)
            mean, var = (z.to(state_dtype(x)) for z in moments)
            outputs = ops.neuron_forward(x, steps, *affine_prelude(mean, var, weight, bias, eps), *common)
        elif count == 0:  # nothing to normalise or to track, as in torch
            mean, var = (full((x.shape[2],), dtype=state_dtype(x)) for full in (x.new_zeros, x.new_ones))
            outputs = ops.neuron_forward(x, steps, *affine_prelude(mean, var, weight, bias, eps), *common)
        else:
            *outputs, mean, var = ops.batch_norm_forward(x, steps, weight, bias, eps, *common)
        if running_mean is not None and (process_group is not None or count):
            _track(running_mean, running_var, mean, var, count, momentum)
    else:
        mean, var = as_state(running_mean, x), as_state(running_var, x)
        outputs = ops.neuron_forward(x, steps, *affine_prelude(mean, var, weight, bias, eps), *common)
    return as_output(outputs, return_v)


def batch_norm_lif(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    channel_mask: Tensor | None = None,
    **lif_arguments,
) -> NeuronOutput:
    """:func:`batch_norm_neuron` with ``neuron="lif"``."""
    statistics = (running_mean, running_var, training, momentum, eps)
    return batch_norm_neuron(x, weight, bias, *statistics, channel_mask, "lif", **lif_arguments)


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    process_group=None,
) -> Tensor:
    """Batch norm over (T, N, S) alone, for a current that something is added to before the neuron.

    Equivalent to ``torch.nn.functional.batch_norm(x.flatten(0, 1), ...).view_as(x)``, which it is on one process.

    Args:
        x: [T, N, C, *S].
        All others: see :func:`batch_norm_neuron`.

    Returns:
        [T, N, C, *S], in the dtype and layout of x.

    Raises:
        TypeError, ValueError: an argument is off; the message names it.
    """
    x, steps = check_activation(x, None)
    training, momentum, eps = check_batch_norm(x, running_mean, running_var, training, momentum, eps, process_group)
    weight, bias = check_vector("weight", weight, x), check_vector("bias", bias, x)
    count = _count(x, steps, process_group) if training else None
    if not training or process_group is None:
        mean, var = (None, None) if running_mean is None else (as_state(running_mean, x), as_state(running_var, x))
        own = mean is running_mean and var is running_var and not isinstance(momentum, Tensor)
        own = own and not passes_nan(x.device.type)
        own = own and (mean is None or not (_is_negated(mean) or _is_negated(var)))
        apart = training and running_mean is not None and not (own and count)
        if apart:  # torch moves none of another dtype, and none by a tensor: with momentum 1 it gives the batch's
            mean, var = torch.zeros_like(mean), torch.ones_like(var)
        weighted = 1.0 if apart else momentum
        on_cudnn = torch.backends.cudnn.enabled
        y = torch.batch_norm(x.flatten(0, 1), weight, bias, mean, var, training, weighted, eps, on_cudnn)
        if apart and count:
            _move(running_mean, running_var, mean, var, momentum)
        return y.unflatten(0, x.shape[:2])
    *moments, count = synchronized_moments(x, count, process_group)
    mean, var = (z.to(state_dtype(x)) for z in moments)
    scale, shift = (z.view(-1, *[1] * (x.dim() - 3)) for z in affine_prelude(mean, var, weight, bias, eps))
    y = (x * scale + shift).to(x.dtype)
    if running_mean is not None:
        _track(running_mean, running_var, mean, var, count, momentum)
    return y


def _count(x: Tensor, steps: int, process_group: Any) -> int:
    """Values per channel on this rank."""
    count = steps * x.shape[1] * spatial_size(x)
    if count == 1 and process_group is None:
        raise ValueError(f"x: expected more than 1 value per channel when training, got shape {tuple(x.shape)}")
    return count


def _track(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, count: int | Tensor, momentum: float | Tensor
) -> None:
    """Move running statistics towards those of a batch of ``count`` values per channel, in place, as torch does."""
    others = (count - 1).clamp(min=1) if isinstance(count, Tensor) else max(count - 1, 1)
    _move(running_mean, running_var, mean, var * (count / others), momentum)


@torch.no_grad()
def _move(running_mean: Tensor, running_var: Tensor, mean: Tensor, var: Tensor, momentum: float | Tensor) -> None:
    """Move running statistics towards others, in place; in the wider dtype of both. Where NaN may pass, what is not
    finite moves nothing."""
    finite = mean.isfinite() & var.isfinite() if passes_nan(mean.device.type) else None
    for running, new in ((running_mean, mean), (running_var, var)):
        new = new if finite is None else torch.where(finite, new, running.to(new.dtype))
        weight = momentum.to(new.dtype) if isinstance(momentum, Tensor) else momentum
        if running.dtype == new.dtype:
            running.lerp_(new, weight)
        else:
            running.copy_(torch.lerp(running.to(new.dtype), new, weight))


def _is_negated(p: Tensor) -> bool:
    """Whether p lies in memory with the other sign, as torch's own batch norm does not notice."""
    return not torch.compiler.is_compiling() and p.is_neg()
