"""All that the package uses of torch without having been promised it, and what it does where a release lacks it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function


def _known(name: str, otherwise: Any = None) -> Any:
    """``torch.<name>``, or what stands in for it."""
    try:
        return attrgetter(name)(torch)
    except AttributeError:
        return otherwise


disable_dynamo: Callable[..., Any] = _known("_disable_dynamo", torch.compiler.disable)
"""``torch.compiler.disable`` that does not load the compiler."""

graph_task: Callable[[], int] = _known("_C._current_graph_task_id", lambda: -1)
"""Number of the backward pass that this thread is in, -1 for none. Without it, forward passes that activation
checkpointing repeats are counted again."""

tracing_state: Callable[[], Any] = _known("_C._get_tracing_state", lambda: torch.jit.is_tracing() or None)
"""What ``torch.jit.trace`` has recorded, None where it does not: ``torch.jit.is_tracing`` at a third of the time."""


def compiled_call(module: torch.nn.Module) -> Callable[..., Any] | None:
    """What ``module.compile()`` has it run in place of its own code; None where it was not called, or torch does not
    tell: hooks on what is in it are then not run."""
    return getattr(module, "_compiled_call_impl", None)


def set_compiled_call(module: torch.nn.Module, compiled: Callable[..., Any] | None) -> None:
    """Put back, or take away for a while, what :func:`compiled_call` gives."""
    module._compiled_call_impl = compiled


below_autograd: Callable[[], contextlib.AbstractContextManager] = torch._C._AutoDispatchBelowAutograd
"""A context in which operators skip their autograd. Nothing stands in for it; torch.library's own gradients need it,
too."""

_parse_schema = _known("_C.parse_schema")
_transform_level = _known("_C._functorch.maybe_current_level", lambda: None)
_is_wrapped = _known("_C._functorch.is_functorch_wrapped_tensor", lambda z: False)
_keys_of = _known("_C._dispatch_keys")
_profiled = _known("autograd._profiler_enabled")
_included = _known("_C._dispatch_tls_local_include_set")
_excluded = _known("_C._dispatch_tls_is_dispatch_key_excluded")
_KEY, _KEYS = _known("_C.DispatchKey"), _known("_C.DispatchKeySet")

# What the dispatcher goes by, where nobody but autograd has a say: the keys of ordinary tensors (and of those made in
# inference mode), and what is on for all calls.
_ORDINARY: frozenset[int] = frozenset()
_ALWAYS: frozenset[int] = frozenset()
if None not in (_keys_of, _profiled, _included, _excluded, _KEY, _KEYS) and hasattr(_KEYS, "raw_repr"):
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
    """Whether the dispatcher would do nothing with a call but to run it, recorded by autograd or not: no compiler,
    tracer, transform, mode, profiler or subclass is to see it. False where torch does not tell."""
    if (
        torch.compiler.is_compiling()
        or not _ORDINARY
        or has_torch_function(arguments)
        or _profiled()
        or in_forward_mode()
        or _included().raw_repr() not in _ALWAYS
        or (torch.is_grad_enabled() and _excluded(_KEY.AutogradOther))
    ):
        return False
    for z in arguments:  # noqa: SIM110  every call of a layer comes by here
        if isinstance(z, Tensor) and _keys_of(z).raw_repr() not in _ORDINARY:
            return False
    return True


def in_forward_mode() -> bool:
    """Whether automatic differentiation in forward mode is at work; False where torch does not tell."""
    return getattr(forward_ad, "_current_level", -1) >= 0


def in_transform() -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp, ...) is at work; False where torch does not tell."""
    return _transform_level() is not None


def has_own_memory(z: Tensor) -> bool:
    """Whether z has its elements in memory of its own: not sparse, quantized, a subclass that only stands for others,
    or what a transform of torch.func hands out."""
    stands_in = type(z) not in (Tensor, torch.nn.Parameter) if _keys_of is None else _keys_of(z).has(_KEY.Python)
    return z.layout is torch.strided and not z.is_quantized and not stands_in and not _is_wrapped(z)


def has_schema(overload: Any, schema: str) -> bool:
    """Whether an operator has this schema; True where torch does not tell."""
    own = getattr(overload, "_schema", None)
    return own is None or _parse_schema is None or own == _parse_schema(schema)


@functools.lru_cache(maxsize=32)
def _of_one_level(function: type[torch.autograd.Function]) -> type:
    """The same function as torch.func makes its own: one that looks at no transform. (Torch 2.14 has the method
    ``apply`` of all others do so.)"""
    base = torch.autograd.function._SingleLevelFunction
    members = {name: staticmethod(getattr(function, name)) for name in ("forward", "backward")}
    return type(function.__name__, (base,), members)


def applied_in_transform(function: type[torch.autograd.Function], arguments: tuple[Any, ...]) -> Any:
    """``function.apply`` within a transform of torch.func, recorded for the innermost one alone; where torch has no way
    to do that, as it would do it by itself."""
    try:
        from torch._functorch.autograd_function import enable_single_level_autograd_function

        alone = _of_one_level(function)
    except (ImportError, AttributeError):
        return function.apply(*arguments)
    with enable_single_level_autograd_function():
        return alone.apply(*arguments)
