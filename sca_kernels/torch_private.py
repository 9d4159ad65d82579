"""All that the package uses of torch without having been promised it: what each name buys, and the public way where a
release lacks it.

``python -m benchmarks.private_names`` measures what they buy and prints the table; a test runs a training step with
each of them missing in turn. A name that buys speed has to be worth a twentieth of a small training step, or of an
import.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function


class PrivateName(NamedTuple):
    """Names that serve one purpose.

    Attributes:
        names: below ``torch``.
        buys: what for, with the figure where it is speed.
        otherwise: what runs where one of them is missing.
    """

    names: tuple[str, ...]
    buys: str
    otherwise: str


PRIVATE = {
    "disable_dynamo": PrivateName(
        ("_disable_dynamo",),
        "that `import sca_kernels` does not load the compiler: without, it takes 20 times as long, 1 s",
        "torch.compiler.disable",
    ),
    "graph_task": PrivateName(
        ("_C._current_graph_task_id",),
        "that a forward pass which activation checkpointing repeats is not counted again",
        "running statistics and activity count it again: nothing public tells of a backward pass",
    ),
    "below_autograd": PrivateName(
        ("_C._AutoDispatchBelowAutograd",),
        "operators that are compiled, traced, profiled or transformed have all their derivatives",
        "torch.library.register_autograd: none of forward mode, of neurons none within torch.func's transforms, and of "
        "convolutions only the first",
    ),
    "is_unwatched": PrivateName(
        (
            "_C._dispatch_keys",
            "_C._dispatch_tls_local_include_set",
            "_C._dispatch_tls_is_dispatch_key_excluded",
            "_C.DispatchKey",
            "_C.DispatchKeySet",
            "autograd._profiler_enabled",
        ),
        "operators that nobody watches are called past the dispatcher: without, a training step of digits (vgg9 x 0.5, "
        "batch 64, T = 4, one thread) takes 1.07 times as long, a LIF of 1,024 elements, both passes, 1.6 times",
        "all calls go through the dispatcher",
    ),
    "in_transform": PrivateName(
        ("_C._functorch.maybe_current_level", "_C._functorch.is_functorch_wrapped_tensor"),
        "torch.func's transforms of neurons and convolutions, and clear errors where there is no rule",
        "the dispatcher's own rules and errors",
    ),
    "applied_in_transform": PrivateName(
        (
            "autograd.function._SingleLevelFunction",
            "_functorch.autograd_function.enable_single_level_autograd_function",
        ),
        "gradients within torch.func's transforms, nested ones too",
        "torch.autograd.Function.apply, which torch refuses there",
    ),
    "compiled_call": PrivateName(
        ("nn.Module._compiled_call_impl",),
        "that criteria which look at single layers see those of a model that was compiled in place (module.compile()), "
        "for the step before an update",
        "an error that says so: nothing public takes a compilation back",
    ),
}
"""By the name here that they stand behind."""


def found(purpose: str) -> list[Any] | None:
    """The objects of a purpose, in order; None where torch lacks one."""
    try:
        return [attrgetter(name)(torch) for name in PRIVATE[purpose].names]
    except AttributeError:
        return None


(disable_dynamo,) = found("disable_dynamo") or (torch.compiler.disable,)
"""``torch.compiler.disable`` that does not load the compiler."""

(graph_task,) = found("graph_task") or (lambda: -1,)
"""Number of the backward pass that this thread is in, -1 for none."""

(below_autograd,) = found("below_autograd") or (None,)
below_autograd: Callable[[], contextlib.AbstractContextManager] | None
"""A context in which operators skip their autograd; None where there is none."""

_transform_level, _is_wrapped = found("in_transform") or (lambda: None, lambda z: False)
_keys_of, _included, _excluded, _KEY, _KEYS, _profiled = found("is_unwatched") or (None,) * 6

# What the dispatcher goes by, where nobody but autograd has a say: the keys of ordinary tensors (and of those made in
# inference mode), and what is on for all calls.
_ORDINARY: frozenset[int] = frozenset()
_ALWAYS: frozenset[int] = frozenset()
if _KEYS is not None and hasattr(_KEYS, "raw_repr"):
    _ORDINARY = frozenset(
        keys.raw_repr()
        for device, autograd, autocast in (
            (_KEY.CPU, _KEY.AutogradCPU, _KEY.AutocastCPU),
            (_KEY.CUDA, _KEY.AutogradCUDA, _KEY.AutocastCUDA),
        )
        for bare in [_KEYS(device) | _KEYS(autocast)]
        for keys in (bare, bare | _KEYS(autograd) | _KEYS(_KEY.ADInplaceOrView))
    )
    _ALWAYS = frozenset(
        keys.raw_repr() for keys in (_KEYS(_KEY.BackendSelect), _KEYS(_KEY.BackendSelect) | _KEYS(_KEY.ADInplaceOrView))
    )


def is_unwatched(arguments: tuple[Any, ...]) -> bool:
    """Whether the dispatcher would do nothing with a call but to run it, recorded by autograd or not: no tracer,
    transform, mode, profiler or subclass is to see it. False where torch does not tell."""
    if (
        not _ORDINARY
        or has_torch_function(arguments)
        or _profiled()
        or _included().raw_repr() not in _ALWAYS
        or (torch.is_grad_enabled() and _excluded(_KEY.AutogradOther))
    ):
        return False
    for z in arguments:
        if isinstance(z, Tensor) and (
            _keys_of(z).raw_repr() not in _ORDINARY or forward_ad.unpack_dual(z).tangent is not None
        ):
            return False
    return True


def has_tangent(z: Tensor) -> bool:
    """Whether a tensor carries a derivative of forward mode."""
    return forward_ad.unpack_dual(z).tangent is not None


def in_transform() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp, ...) is at work; False where torch does not tell."""
    return _transform_level() is not None


def has_own_memory(z: Tensor) -> bool:
    """Whether z has its elements in memory of its own: not sparse, quantized, a subclass that only stands for others,
    or what a transform of torch.func hands out."""
    stands_in = type(z) not in (Tensor, torch.nn.Parameter) if _keys_of is None else _keys_of(z).has(_KEY.Python)
    return z.layout is torch.strided and not z.is_quantized and not stands_in and not _is_wrapped(z)


@functools.lru_cache(maxsize=32)
def _of_one_level(function: type[torch.autograd.Function]) -> type:
    """The same function as torch.func makes its own: one that looks at no transform. (Torch 2.14 has the method
    ``apply`` of all others do so.)"""
    base, _ = found("applied_in_transform")
    members = {name: staticmethod(getattr(function, name)) for name in ("forward", "backward")}
    return type(function.__name__, (base,), members)


def applied_in_transform(function: type[torch.autograd.Function], arguments: tuple[Any, ...]) -> Any:
    """``function.apply`` within a transform of torch.func, recorded for the innermost one alone; where torch has no way
    to do that, as it would do it by itself."""
    names = found("applied_in_transform")
    if names is None:
        return function.apply(*arguments)
    with names[1]():
        return _of_one_level(function).apply(*arguments)


def compiled_call(module: torch.nn.Module) -> Callable[..., Any] | None:
    """What ``module.compile()`` has it run in place of its own code; None where it was not called, or torch does not
    tell: hooks on what is in it are then not run."""
    return getattr(module, "_compiled_call_impl", None)


def set_compiled_call(module: torch.nn.Module, compiled: Callable[..., Any] | None) -> None:
    """Put back, or take away for a while, what :func:`compiled_call` gives."""
    module._compiled_call_impl = compiled
