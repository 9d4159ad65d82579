"""Batch norm, alone and in front of a neuron, with its running statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import checks, ops
from ..channels import at_width
from ..layout import state_dtype
from ..ops.common import passes_nan
from ..reference.batch_norm import prelude as affine_prelude
from ..surrogates import Surrogate
from ..tracking import Tracking, change, move
from . import ranks
from .activity import ActivitySums, check_activity
from .arguments import (
    apart,
    as_state,
    check_activation,
    check_backend,
    check_batch_norm,
    check_channels,
    check_counter,
    check_leak_rate,
    check_mask,
    check_neuron,
    check_threshold,
    check_v_init,
    check_vector,
)
from .multistep import NeuronOutput, NeuronSequences, as_output, recorded


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
    v_threshold: float | Tensor = 1.0,
    v_reset: float | None = 0.0,
    decay_input: bool = True,
    detach_reset: bool = False,
    surrogate: str | Surrogate = "atan",
    alpha: float | None = None,
    fire: str = ">=",
    v_subtract: float | None = None,
    v_rest: float | None = None,
    rate: float | None = None,
    decay: float | None = None,
    v_init: Tensor | None = None,
    time_steps: int | None = None,
    return_v: bool = True,
    return_v_seq: bool = False,
    return_h_seq: bool = False,
    process_group=None,
    backend: str | None = None,
    activity: ActivitySums | None = None,
    channels: Tensor | None = None,
    num_batches_tracked: Tensor | None = None,
) -> NeuronOutput | NeuronSequences:
    """Batch norm over (T, N, S) and a neuron in one operator; the normalised current is never written to memory.

    Equivalent to ``neuron(torch.nn.functional.batch_norm(x.flatten(0, 1), ...).view_as(x))``. In training (or without
    running statistics) batch statistics are used and the running ones, if given, are updated in place as torch does
    (unbiased variance); otherwise this is the neuron behind the affine prelude that the running statistics give.

    Args:
        x: [T, N, C, *S], a convolution's output; with ``time_steps``, [1, N, C, *S].
        weight, bias: [C] or None (gamma 1, beta 0); with ``channels`` also longer.
        running_mean, running_var: [C] or None; updated in place when training, once the pass has turned out well.
        training: whether to use (and track) batch statistics.
        momentum: weight of the new batch in the running statistics; a number, or a tensor of one on the device of x,
            which is then not waited for.
        eps: added to the variance, > 0.
        process_group: a torch.distributed group (True: the default one) over whose ranks batch statistics are taken,
            by one sum over ranks in each pass. Gradients of weight, bias and w are those of this rank's batch.
        channels: sorted unique int64 indices [C], where the channels of x stand in running_mean and running_var, and in
            weight and bias where these are longer than [C]; None: one for one. ``activity`` must have the same.
        num_batches_tracked: int64 tensor of one, increased by one when running statistics are updated, or None.
        channel_mask, and all others: see :func:`neuron`.

    Raises:
        ValueError: also when training with one value per channel, as torch.nn.functional.batch_norm.
        RuntimeError: with a process group within transforms of torch.func, or in forward mode.
    """
    v_threshold, threshold = apart(v_threshold)
    named = neuron, tau, v_threshold, v_reset, decay_input, detach_reset, surrogate, alpha
    config = check_neuron(*named, fire, v_subtract, v_rest, rate, decay)
    x, steps = check_activation(x, time_steps)
    statistics = running_mean, running_var
    vectors = weight, bias, *statistics
    if channels is not None and not (activity is not None and activity.has_checked(channels, vectors)):
        long = [z for z in (weight, bias) if isinstance(z, Tensor) and z.numel() != x.shape[2]]
        channels = check_channels(channels, x, [*long, *statistics])
    training, momentum, eps = check_batch_norm(x, *statistics, training, momentum, eps, process_group, channels)
    check_counter("num_batches_tracked", num_batches_tracked, x)
    if activity is not None:
        check_activity(activity, x)
        if activity.channels is not channels and (running_mean is not None or channels is not None):
            raise ValueError("activity: expected one with the list of channels that the running statistics have")
        channels = activity.channels
    weight, bias = check_vector("weight", weight, x, channels), check_vector("bias", bias, x, channels)
    threshold = check_threshold(threshold, x)
    before = check_leak_rate(w, config, x), threshold, check_v_init(v_init, x), check_mask(channel_mask, x)
    sequences = checks.boolean("return_v_seq", return_v_seq), checks.boolean("return_h_seq", return_h_seq)
    before += checks.boolean("return_v", return_v), any(sequences)
    behind = check_backend(backend), *config
    # A plain tuple: torch 2.9 can't compile a sum over ranks, where a graph breaks, with a NeuronConfig held over it.
    as_asked = return_v, sequences, behind[1:], threshold
    if training and process_group is None and (count := _count(x, steps)):
        arguments = x, steps, weight, bias, eps, *before, channels
        tracked = *statistics, num_batches_tracked, momentum
        return as_output(_in_training(arguments, tracked, activity, count, behind), *as_asked)
    if not training and activity is None:
        mean, var = (as_state(z, x) for z in statistics)
        arguments = x, steps, weight, bias, mean, var, eps, *before, channels, *behind
        return as_output(ops.batch_norm_inference(*arguments), *as_asked)
    weight, bias = at_width(weight, channels, x), at_width(bias, channels, x)
    if training and process_group is not None:
        arguments = x, steps, weight, bias, eps, *before, *behind
        *outputs, mean, var, total = ranks.batch_norm_neuron(arguments, process_group, activity)
        _track_ranks(mean, var, total, *statistics, num_batches_tracked, momentum, channels)
        return as_output(outputs, *as_asked)
    if training:  # nothing to normalise or to track, as in torch
        mean, var = (full((x.shape[2],), dtype=state_dtype(x)) for full in (x.new_zeros, x.new_ones))
    else:
        mean, var = (as_state(at_width(z, channels, x), x) for z in statistics)
    arguments = x, steps, *affine_prelude(mean, var, weight, bias, eps), *before
    outputs = ops.neuron_forward(*arguments, *behind) if activity is None else recorded(arguments, activity, behind)
    return as_output(outputs, *as_asked)


def _in_training(
    arguments: tuple[Any, ...],
    tracked: tuple[Tensor | None, Tensor | None, Tensor | None, float | Tensor],
    activity: ActivitySums | None,
    count: int,
    behind: tuple[Any, ...],
) -> Sequence[Tensor]:
    """What ``ops.batch_norm_forward`` gives first for its arguments (behind: backend and configuration), with running
    statistics (the first two tracked), the number of batches moved, by a momentum, and the activity added to sums."""
    *statistics, batches, momentum = tracked
    if statistics[0] is None and activity is None:
        return ops.batch_norm_forward(*arguments, *behind)[:5]
    batches = batches if statistics[0] is not None else None
    sums = (None, None, None)
    if activity is not None:
        sums = activity.spike_count, activity.membrane_l1, activity.positions
    if ops.can_change_in_place(*statistics):
        weight = (0.0, momentum) if isinstance(momentum, Tensor) else (momentum, None)
        return ops.recorded_batch_norm_forward(*arguments, *statistics, batches, *weight, *sums, *behind)[:5]
    *outputs, norm = ops.batch_norm_forward(*arguments, *behind)
    given = (None if z[0] is None else tuple(z) for z in (sums, statistics))
    tracking = Tracking(count, *given, momentum, batches, arguments[-1], passes_nan(norm.device.type))
    with torch.no_grad():
        change(*outputs[2:4], norm, tracking)
    return outputs


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
    if not training or process_group is None:
        count = _count(x, steps) if training else None
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
            with torch.no_grad():
                move(mean, var, running_mean, running_var, momentum, None, passes_nan(x.device.type))
        return y.unflatten(0, x.shape[:2])
    y, mean, var, count = ranks.batch_norm(x, weight, bias, eps, process_group)
    _track_ranks(mean, var, count, running_mean, running_var, None, momentum, None)
    return y


def _count(x: Tensor, steps: int) -> int:
    """Values per channel."""
    count = ops.seen(x, steps)
    if count == 1:
        raise ValueError(f"x: expected more than 1 value per channel when training, got shape {tuple(x.shape)}")
    return count


@torch.no_grad()
def _track_ranks(
    mean: Tensor,
    var: Tensor,
    count: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    batches: Tensor | None,
    momentum: float | Tensor,
    channels: Tensor | None,
) -> None:
    """Move running statistics towards those of ``count`` values per channel, a number on the device, of several ranks.
    What is not finite moves nothing: a rank without samples is not told of another's NaN. Nor does a batch of no
    samples at all, which nobody waits for the count of."""
    if running_mean is None:
        return
    mean, unbiased = torch.where(count > 0, mean, torch.nan), var * (count / (count - 1).clamp(min=1))
    move(mean, unbiased, running_mean, running_var, momentum, channels, True)
    if batches is not None:
        batches.add_(1)


def _is_negated(p: Tensor) -> bool:
    """Whether p lies in memory with the other sign, as torch's own batch norm does not notice."""
    return not torch.compiler.is_compiling() and p.is_neg()
