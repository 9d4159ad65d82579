"""Which calls can be made for all steps at once, and how."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...structure.tracing import leaves
from .calls import Node, Slot, StepNeuron, alike, words

__all__ = [
    "ELEMENTWISE",
    "FACTORIES",
    "Family",
    "INDEXING",
    "JOINS",
    "Run",
    "SAME",
    "STEPS",
    "at_once",
    "can_be_one",
    "is_listed",
    "is_random",
    "over_steps",
    "takes_batch_statistics",
    "whole_numbers",
]

# What can be done for all steps at once.

ELEMENTWISE = words(
    "add radd iadd sub rsub isub subtract mul rmul imul multiply div rdiv truediv rtruediv itruediv divide true_divide "
    "floor_divide floordiv mod remainder fmod pow rpow neg negative pos abs exp exp2 expm1 log log1p log2 log10 sqrt "
    "rsqrt square reciprocal sign sin cos tan atan erf sigmoid tanh relu relu6 leaky_relu elu selu celu gelu silu mish "
    "softplus softsign hardtanh hardsigmoid hardswish logsigmoid threshold clamp clamp_min clamp_max clip minimum "
    "maximum where lt le gt ge eq ne less less_equal greater greater_equal logical_and logical_or logical_not "
    "logical_xor bitwise_and bitwise_or bitwise_xor bitwise_not and or xor invert heaviside floor ceil round "
    "trunc lerp addcmul addcdiv masked_fill nan_to_num zeros_like ones_like full_like clone detach data float double "
    "half bfloat16 int long bool to type_as contiguous"
)
FACTORIES = words("zeros ones full eye arange linspace tensor as_tensor new_zeros new_ones new_full new_tensor")
# The first dimension of the first argument is that of the samples, which don't know of each other. By the number of
# dimensions that it has then.
_SAMPLEWISE = {
    **dict.fromkeys(("conv1d", "conv_transpose1d", "max_pool1d", "avg_pool1d", "adaptive_avg_pool1d"), 3),
    **dict.fromkeys(("adaptive_max_pool1d", "lp_pool1d"), 3),
    **dict.fromkeys(("conv2d", "conv_transpose2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"), 4),
    **dict.fromkeys(("adaptive_max_pool2d", "lp_pool2d", "dropout2d", "pixel_shuffle", "channel_shuffle"), 4),
    **dict.fromkeys(("conv3d", "conv_transpose3d", "max_pool3d", "avg_pool3d", "adaptive_avg_pool3d"), 5),
    **dict.fromkeys(("linear", "dropout", "alpha_dropout", "group_norm", "batch_norm", "interpolate", "prelu"), 0),
}
_RANDOM = {
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_dropout",
    "feature_alpha_dropout",
}
# Where dimensions stand among the arguments, each with its name and default; ... where there is none.
_DIMENSIONS: dict[str, tuple[tuple[int, str, Any], ...]] = {
    **dict.fromkeys(words("sum mean prod amax amin max min argmax argmin any all std var"), ((1, "dim", ...),)),
    **dict.fromkeys(words("softmax log_softmax logsumexp cumsum unsqueeze squeeze"), ((1, "dim", ...),)),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), ((1, "dim", 0),)),
    **dict.fromkeys(("chunk", "split", "narrow_copy"), ((2, "dim", 0),)),
    **dict.fromkeys(("narrow", "select", "index_select"), ((1, "dim", ...),)),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), ((1, "dim0", ...), (2, "dim1", ...))),
    "flatten": ((1, "start_dim", 0), (2, "end_dim", -1)),
    "unflatten": ((1, "dim", ...),),
}
JOINS = {"cat", "concat", "concatenate", "stack"}
_ELEMENTWISE_LAYERS = words(
    "Identity ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Sigmoid Tanh Hardtanh Hardsigmoid Hardswish Softplus "
    "Softsign LogSigmoid Threshold Tanhshrink Hardshrink Softshrink Dropout AlphaDropout Embedding"
)
_SAMPLEWISE_LAYERS = {
    **{
        f"{kind}{d}d": (d + 2,)
        for d in (1, 2, 3)
        for kind in words(
            "Conv ConvTranspose MaxPool AvgPool AdaptiveAvgPool AdaptiveMaxPool LPPool Dropout BatchNorm "
            "ZeroPad ConstantPad ReflectionPad ReplicationPad"
        )
    },
    **dict.fromkeys(words("Upsample PixelShuffle PixelUnshuffle ChannelShuffle UpsamplingNearest2d"), (4,)),
    "BatchNorm1d": (2, 3),
    **dict.fromkeys(words("Linear PReLU GroupNorm LayerNorm Flatten Unflatten Softmax LogSoftmax"), (2, 3, 4, 5, 6)),
}

Run = Callable[[list[Any]], list[Any]]
SAME, STEPS = "same", "steps"


@dataclass(eq=False)
class Family:
    """The calls from one place in the loop, one per step, to be made as one.

    Attributes:
        parts: how many calls of this place there are in each step; one of them is here.
        once: all get the same and give the same: made once, and its result has no time dimension.
    """

    members: list[Node]
    parts: int
    neuron: StepNeuron | None = None
    once: bool = False
    run: Run | None = None

    @property
    def steps(self) -> int:
        return len(self.members)

    @property
    def first(self) -> Node:
        return self.members[0]


def can_be_one(members: Sequence[Node]) -> bool:
    """Whether calls differ in nothing but the values of tensors."""
    first = members[0]
    return all(
        alike((first.args, first.kwargs), (node.args, node.kwargs))
        and first.shapes == node.shapes
        and first.specs == node.specs
        and alike(first.result, node.result)
        and (first.grad, first.clone, first.changed) == (node.grad, node.clone, node.changed)
        for node in members[1:]
    )


def is_listed(node: Node, merge_statistics: bool) -> bool:
    """Whether there may be a way to make such calls as one."""
    if node.name == "batch_norm" and node.target is not nn.functional.batch_norm:
        return False
    if node.module is None:
        return node.name in _LISTED and (merge_statistics or not takes_batch_statistics(node))
    if node.name.startswith("BatchNorm") and (node.module.training or node.module.running_mean is None):
        return merge_statistics and node.name in _SAMPLEWISE_LAYERS
    return node.name in _ELEMENTWISE_LAYERS or node.name in _SAMPLEWISE_LAYERS


def at_once(family: Family, kinds: Sequence[str]) -> Run | None:
    """How to make the calls of a family as one. Its arguments are the same for all steps, or have a leading T, as has
    what it returns."""
    node, steps = family.first, family.steps
    rank = len(node.shapes[0]) if node.shapes else 0

    def with_steps(values: list[Any], which: Iterable[int] = (0,)) -> list[Any]:
        for i in which:
            if kinds[i] == SAME:
                values[i] = values[i].expand(steps, *values[i].shape)
        return values

    def elementwise(values: list[Any]) -> list[Any]:
        if node.clone and kinds[0] == SAME:
            return node.run([with_steps(values)[0], *_aligned(node, kinds, values)[1:]])
        return node.run(_aligned(node, kinds, values))

    def samplewise(values: list[Any]) -> list[Any]:
        x = with_steps(values)[0]
        return [y.unflatten(0, x.shape[:2]) for y in node.run([x.flatten(0, 1), *values[1:]])]

    def shifted(values: list[Any]) -> list[Any]:
        return node.run(with_steps(values, range(len(values))), arguments)

    if node.module is not None:
        if node.name in _ELEMENTWISE_LAYERS:
            return lambda values: node.run(with_steps(values))
        if rank not in _SAMPLEWISE_LAYERS[node.name] or not _keeps_samples(node) or len(kinds) > 1:
            return None
        module = node.module
        dim = {"Flatten": "start_dim", "Unflatten": "dim", "Softmax": "dim", "LogSoftmax": "dim"}.get(node.name)
        if dim is not None and (not isinstance(getattr(module, dim), int) or getattr(module, dim) % rank == 0):
            return None
        if node.name == "LayerNorm" and len(module.normalized_shape) >= rank:
            return None
        return samplewise
    if node.name in _RULES:
        return _RULES[node.name](family, kinds)
    if node.name in _SAMPLEWISE:
        needed = _SAMPLEWISE[node.name] or max(rank, 2)
        is_first = bool(node.args) and node.args[0] == Slot(0) and not any(kind == STEPS for kind in kinds[1:])
        if rank != needed or not is_first or not _keeps_samples(node):
            return None
        return samplewise
    if node.name in _DIMENSIONS:
        arguments = _shifted_dimensions(node)
        if arguments is None or node.changed or (len(kinds) > 1 and node.name not in JOINS):
            return None
        return shifted
    if node.name in ELEMENTWISE and not any(isinstance(leaf, torch.memory_format) for leaf in leaves(node.args)):
        return elementwise if not any(isinstance(x, torch.memory_format) for x in node.kwargs.values()) else None
    return None


def _keeps_samples(node: Node) -> bool:
    return all(shape[:1] == node.shapes[0][:1] for shape, _ in node.specs)


def is_random(node: Node) -> bool:
    if node.module is not None:
        return node.name.lower() in _RANDOM and node.module.training
    return node.name in _RANDOM and node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)


def takes_batch_statistics(node: Node) -> bool:
    if node.target is not nn.functional.batch_norm:
        return False
    bound = inspect.signature(nn.functional.batch_norm).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return bool(bound.arguments["training"])


def _shifted_dimensions(node: Node) -> tuple[tuple, dict] | None:
    """The arguments, with dimensions counted behind that of time."""
    args, kwargs = list(node.args), dict(node.kwargs)
    for position, name, default in _DIMENSIONS[node.name]:
        if position > len(args):
            return None
        dim = kwargs.pop(name, args[position] if position < len(args) else default)
        dims = dim if isinstance(dim, tuple | list) else (dim,)
        if not dims or not all(type(d) is int for d in dims):
            return None
        moved = [d + 1 if d >= 0 else d for d in dims]
        args[position : position + 1] = [moved if isinstance(dim, tuple | list) else moved[0]]
    return tuple(args), kwargs


def _permuted(family: Family, kinds: Sequence[str]) -> Run | None:
    dims, rank = whole_numbers(family.first), len(family.first.shapes[0])
    if dims is None:
        return None
    return lambda values: [values[0].permute(0, *(d % rank + 1 for d in dims))]


def _reshaped(family: Family, kinds: Sequence[str]) -> Run | None:
    sizes, steps = whole_numbers(family.first), family.steps
    return None if sizes is None else lambda values: [values[0].reshape(steps, *sizes)]


def _multiplied(family: Family, kinds: Sequence[str]) -> Run | None:
    node = family.first
    ranks = [len(shape) for shape in node.shapes]
    if len(ranks) != 2 or min(ranks) < 2 or node.kwargs or node.args != (Slot(0), Slot(1)):
        return None
    return lambda values: node.run(_aligned(node, kinds, values))


def _aligned(node: Node, kinds: Sequence[str], values: Sequence[Tensor]) -> list[Tensor]:
    """Values of all steps, with as many dimensions behind that of time as the one that has most: for broadcasting."""
    most = max(len(shape) for shape in node.shapes)
    return [
        x if kind == SAME else x[(slice(None), *(None,) * (most + 1 - x.dim()))]
        for x, kind in zip(values, kinds, strict=True)
    ]


def whole_numbers(node: Node) -> tuple[int, ...] | None:
    """The whole numbers behind the one tensor."""
    if len(node.sources) != 1:
        return None
    rest = node.args[1:]
    rest = tuple(rest[0]) if len(rest) == 1 and isinstance(rest[0], tuple | list) else rest
    return rest if rest and not node.kwargs and all(type(number) is int for number in rest) else None


def _picked(family: Family, kinds: Sequence[str]) -> Run | None:
    """The same part of each step's tensor."""
    index = _index(family.first)
    if index is None or len(kinds) != 1:
        return None
    return lambda values: [values[0][(slice(None), *index)]]


_RULES: dict[str, Callable[[Family, Sequence[str]], Run | None]] = {
    "permute": _permuted,
    "view": _reshaped,
    "reshape": _reshaped,
    "matmul": _multiplied,
    "getitem": _picked,
}
INDEXING = {"getitem", "select"}
_LISTED = {*ELEMENTWISE, *FACTORIES, *INDEXING, *_SAMPLEWISE, *_DIMENSIONS, *_RULES}


def _index(node: Node) -> tuple | None:
    """What a tensor is indexed by, without an ellipsis; None where that is more than numbers, slices and None."""
    if len(node.sources) != 1:
        return None
    rank = len(node.shapes[0])
    if node.name == "select":
        if node.kwargs or len(node.args) != 3 or not all(type(number) is int for number in node.args[1:]):
            return None
        return (*(slice(None),) * (node.args[1] % rank), node.args[2])
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    for part in index:
        if not (part is None or part is ... or type(part) is int or isinstance(part, slice)):
            return None
    if ... in index:
        at = index.index(...)
        missing = rank - sum(part is not None and part is not ... for part in index)
        index = (*index[:at], *(slice(None),) * missing, *index[at + 1 :])
    return index


def over_steps(members: Sequence[Node]) -> Run | None:
    """x[0], x[1], ... of one tensor, x[:, t] and the like: that tensor itself, time first."""
    first = members[0]
    if any(node.sources != first.sources or node.grad != first.grad or len(node.sources) != 1 for node in members):
        return None
    indices = [_index(node) for node in members]
    if any(index is None or len(index) != len(indices[0]) for index in indices):
        return None
    moving = [i for i, parts in enumerate(zip(*indices, strict=True)) if not all(alike(parts[0], x) for x in parts)]
    if len(moving) != 1 or not all(type(index[moving[0]]) is int for index in indices):
        return None
    at = moving[0]
    size = first.shapes[0][sum(part is not None for part in indices[0][:at])]
    numbers = [index[at] % size for index in indices]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        return None
    index = (*indices[0][:at], slice(numbers[0], numbers[0] + len(numbers)), *indices[0][at + 1 :])
    dim = sum(type(part) is not int for part in index[:at])
    return lambda values: [values[0][index].movedim(dim, 0)]
