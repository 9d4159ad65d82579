"""Training batch norm, alone and in front of a neuron, over the batches of all ranks of a torch.distributed group, as
torch.nn.SyncBatchNorm has it.

One sum over ranks per pass: forward of the sums of x and x^2 and the number of values, [2 C + 1], backward of those of
dL/dy and dL/dy (x - mean), [2 C], in float64. The activation is read where it is, and never copied. A rank without
samples adds nothing, and takes part. Gradients of weight, bias and leak are those of the rank's own batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..layout import state_dtype
from ..ops.common import not_differentiable
from ..reference.batch_norm import coefficients, gradient_sums, input_gradient, prelude
from ..torch_private import disable_dynamo
from .activity import ActivitySums
from .multistep import recorded

# Elements that a gradient is computed for at a time: what takes more memory than the activation stays in a cache.
_BLOCK = 1 << 16


def batch_norm_neuron(
    arguments: tuple[Any, ...], process_group: Any, activity: ActivitySums | None
) -> tuple[Tensor | None, ...]:
    """What ``ops.batch_norm_forward`` gives for its arguments, with the number of values per channel of all ranks
    behind it, and the activity added to sums.

    Raises:
        RuntimeError: within a transform of torch.func, and in forward mode.
    """
    _refuse_transforms(*arguments)
    return _apply(_BatchNormNeuron, process_group, activity, *arguments)


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, process_group: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x [T, N, C, *S] normalised, mean and biased variance [C], and the number of values per channel, of all ranks.

    Raises:
        RuntimeError: within a transform of torch.func, and in forward mode.
    """
    _refuse_transforms(x, weight, bias)
    return _apply(_BatchNorm, process_group, x, weight, bias, eps)


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> tuple[Tensor | None, ...]:
    """Run it, apart from what a compiler makes of the code around it, which knows nothing of sums over ranks."""
    return _apart(function, *arguments) if torch.compiler.is_compiling() else function.apply(*arguments)


@disable_dynamo
def _apart(function: type[torch.autograd.Function], *arguments: Any) -> tuple[Tensor | None, ...]:
    return function.apply(*arguments)


def _refuse_transforms(*arguments: Any) -> None:
    if ops.transformed(*(z for z in arguments if isinstance(z, Tensor))):
        raise RuntimeError(
            "process_group: expected None within transforms of torch.func and in forward mode (jvp), which do not "
            "reach other processes"
        )


class _BatchNormNeuron(torch.autograd.Function):
    @staticmethod
    def forward(ctx, process_group, activity, x, time_steps, weight, bias, eps, rate, threshold, v_init, *rest):
        mask, return_v, return_h, *behind = rest
        mean, var, count = _statistics(x, time_steps, behind[0], process_group)
        scale, shift = prelude(mean, var, weight, bias, eps)
        arguments = x, time_steps, scale, shift, rate, threshold, v_init, mask, return_v, return_h
        outputs = ops.neuron_forward(*arguments, *behind) if activity is None else recorded(arguments, activity, behind)
        ctx.save_for_backward(x, scale, shift, mean, var, count, rate, threshold, v_init)
        ctx.process_group, ctx.time_steps, ctx.eps, ctx.behind = process_group, time_steps, eps, behind
        ctx.mark_non_differentiable(*not_differentiable(outputs, return_v, return_h), mean, var, count)
        ctx.set_materialize_grads(False)
        return *outputs, mean, var, count

    @staticmethod
    def backward(ctx, grad_spikes, grad_v, _count, _l1, grad_h, *_):
        x, scale, shift, mean, var, count, *own = ctx.saved_tensors
        needs_x, _, *needs_vectors, _, needs_rate, needs_threshold, needs_v_init = ctx.needs_input_grad[2:10]
        call = grad_spikes, grad_v, grad_h, x, ctx.time_steps, scale, shift, mean
        sums = ops.batch_norm_sums(*call, *own, *ctx.behind)
        weight, bias = _vector_gradients(sums, (var.double() + ctx.eps).rsqrt(), *needs_vectors, var.dtype)
        grad_x = grad_v_init = None
        if needs_x or needs_v_init:
            total = _sum_over_ranks(sums[:2].detach().clone(), ctx.process_group)
            lines = coefficients(total, scale, var, ctx.eps, ctx.time_steps // x.shape[0], count)
            grad_x, grad_v_init = ops.batch_norm_gradient(*call, *lines, *own, *ctx.behind)
        return (
            *(None, None, grad_x, None, weight, bias, None),
            sums[2].to(var.dtype) if needs_rate else None,
            sums[-1].to(var.dtype) if needs_threshold else None,
            grad_v_init if needs_v_init else None,
            *[None] * (3 + len(ctx.behind)),
        )


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, process_group, x, weight, bias, eps):
        mean, var, count = _statistics(x, x.shape[0], "", process_group)
        statistics = mean, var, False, 0.0, eps, torch.backends.cudnn.enabled
        y = torch.batch_norm(x.flatten(0, 1), weight, bias, *statistics).unflatten(0, x.shape[:2])
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.process_group, ctx.eps = process_group, eps
        ctx.mark_non_differentiable(mean, var, count)
        return y, mean, var, count

    @staticmethod
    def backward(ctx, grad, *_):
        needed = ctx.needs_input_grad[1:4]
        return None, *_Gradients.apply(grad, *ctx.saved_tensors, ctx.eps, ctx.process_group, needed), None


class _Gradients(torch.autograd.Function):
    """Those of :class:`_BatchNorm`, as far as they are needed."""

    @staticmethod
    def forward(ctx, grad, x, weight, mean, var, count, eps, process_group, needed):
        needs_x, *needs_vectors = needed
        rstd = (var.double() + eps).rsqrt()
        # torch has kernels for it on CUDA devices, and nowhere else; they want at least one element.
        sums_of, input_gradient_of = _BY_TORCH if x.is_cuda and x.numel() else _BY_BLOCKS
        sums, grad_x = sums_of(grad, x, mean, rstd), None
        if needs_x:
            total = _sum_over_ranks(sums.clone(), process_group)
            grad_x = input_gradient_of(grad, x, mean, var, weight, eps, total, count)
        return grad_x, *_vector_gradients(sums, rstd, *needs_vectors, var.dtype)

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "second-order gradients of batch norm over ranks are not defined. Call backward() without "
            "create_graph=True."
        )


def _sums_by_torch(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    frames = (z.flatten(0, 1) for z in (grad, x))
    sums = torch.batch_norm_backward_reduce(*frames, mean, rstd.to(mean.dtype), None, True, False, False)
    return torch.stack(sums[:2]).double()


def _input_gradient_by_torch(grad, x, mean, var, weight, eps, total, count) -> Tensor:
    frames, rstd = (z.flatten(0, 1) for z in (grad, x)), (var.double() + eps).rsqrt().to(mean.dtype)
    others = weight, *total.to(mean.dtype), count.to(torch.int32)[None]
    return torch.batch_norm_backward_elemt(*frames, mean, rstd, *others).unflatten(0, x.shape[:2])


def _sums(grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """Sums of dL/dy and of dL/dy (x - mean), float64 [2, C]."""
    sums = torch.zeros((2, x.shape[2]), dtype=torch.float64, device=x.device)
    for g, z in _blocks(grad, x):
        sums += gradient_sums(g.to(mean.dtype), z, mean)
    return sums


def _input_gradient(grad, x, mean, var, weight, eps, total, count) -> Tensor:
    scale, _ = prelude(mean, var, weight, None, eps)
    lines = coefficients(total, scale, var, eps, 1, count)
    made = torch.empty_like(x)
    for g, z, to in _blocks(grad, x, made):
        to.copy_(input_gradient(g.to(mean.dtype), z, scale, mean, *lines))
    return made


def _blocks(*activations: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Activations [T, N, C, *S] of one shape, some samples [1, n, C, *S] of a step at a time."""
    x = activations[0]
    samples = max(_BLOCK * x.shape[1] // max(x[0].numel(), 1), 1)
    for step in zip(*(z.split(1) for z in activations), strict=True):
        yield from zip(*(z.split(samples, 1) for z in step), strict=True)


_BY_TORCH = _sums_by_torch, _input_gradient_by_torch
_BY_BLOCKS = _sums, _input_gradient


def _statistics(x: Tensor, time_steps: int, backend: str, process_group: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance [C] of all ranks in the state's dtype, and the number of values per channel, a float64
    number on the device; zeros where no rank has a value."""
    own = ops.batch_norm_moments(x, time_steps, backend) * (time_steps // x.shape[0])
    total = _sum_over_ranks(torch.cat([own.flatten(), own.new_full((1,), ops.seen(x, time_steps))]), process_group)
    mean, square = (total[:-1] / total[-1].clamp(min=1)).view(2, -1)
    var = (square - mean.square()).clamp(min=0)
    return mean.to(state_dtype(x)), var.to(state_dtype(x)), total[-1]


def _vector_gradients(
    sums: Tensor, rstd: Tensor, needs_weight: bool, needs_bias: bool, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of weight and bias [C] from a rank's own sums."""
    return (sums[1] * rstd).to(dtype) if needs_weight else None, sums[0].to(dtype) if needs_bias else None


def _sum_over_ranks(z: Tensor, process_group: Any) -> Tensor:
    """z itself, changed in place."""
    torch.distributed.all_reduce(z, group=None if process_group is True else process_group)
    return z
