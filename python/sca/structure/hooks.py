"""Hooks that this package puts on users' modules, told from all others: a copy of a model is to do without them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

__all__ = ["capturable", "forget_hooks", "hooks_of", "is_capturable", "is_own", "own"]

Hook = TypeVar("Hook", bound=Callable[..., Any])


def own(hook: Hook) -> Hook:
    """Mark a function as a hook of this package's."""
    hook._is_own_hook = True
    return hook


def capturable(hook: Hook) -> Hook:
    """Mark a hook that reads no value and launches the same work each time: a captured step repeats all that it did."""
    hook.capturable = True
    return hook


def is_own(hook: Callable[..., Any]) -> bool:
    """Whether :func:`own` marked a hook, bare or in a partial."""
    return getattr(_inner(hook), "_is_own_hook", False)


def is_capturable(hook: Callable[..., Any]) -> bool:
    """Whether a hook, bare or in a partial, says that it is :func:`capturable`."""
    return getattr(_inner(hook), "capturable", False)


def hooks_of(module: nn.Module) -> list[Callable[..., Any]]:
    """All hooks of a module's passes, forward and backward."""
    found = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return [hook for hooks in found if hooks for hook in hooks.values()]


def _inner(hook: Callable[..., Any]) -> Callable[..., Any]:
    return hook.func if isinstance(hook, functools.partial) else hook


def forget_hooks(model: nn.Module) -> None:
    """Remove what a copy of a model brought along: the hooks that :func:`own` marked, bare or in a partial."""
    for module in model.modules():
        for hooks in module._forward_pre_hooks, module._forward_hooks:
            for key, hook in list(hooks.items()):
                if is_own(hook):
                    del hooks[key]
