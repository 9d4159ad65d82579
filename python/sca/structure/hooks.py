"""Hooks that this package puts on users' modules, told from all others: a copy of a model is to do without them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

__all__ = ["forget_hooks", "own"]

Hook = TypeVar("Hook", bound=Callable[..., Any])


def own(hook: Hook) -> Hook:
    """Mark a function as a hook of this package's."""
    hook._is_own_hook = True
    return hook


def forget_hooks(model: nn.Module) -> None:
    """Remove what a copy of a model brought along: the hooks that :func:`own` marked, bare or in a partial."""
    for module in model.modules():
        for hooks in module._forward_pre_hooks, module._forward_hooks:
            for key, hook in list(hooks.items()):
                inner = hook.func if isinstance(hook, functools.partial) else hook
                if getattr(inner, "_is_own_hook", False):
                    del hooks[key]
