"""Compiled models run as they stand, for the passes in which hooks that came later are to see their layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sca_kernels.torch_private import compiled_call, set_compiled_call

from .hooks import own
from .wrappers import is_compiled

__all__ = ["run_eagerly"]


def run_eagerly(model: nn.Module) -> list[Callable[[], None]]:
    """Have a model run without the code that torch.compile made of it, or of parts of it.

    Nothing but this model is touched: what else of the process is compiled runs so. A function that was compiled as a
    whole and calls the model is out of reach.

    Args:
        model: as the user calls it: what torch.compile returned, a module compiled in place (``module.compile()``), or
            one that holds such modules.

    Returns:
        What undoes that, call by call.
    """
    undo: list[Callable[[], None]] = []
    for module in model.modules():
        if is_compiled(module):  # its own hooks run outside of the compiled code
            stances: list[Any] = []
            before = module.register_forward_pre_hook(functools.partial(_enter, stances), prepend=True)
            behind = module.register_forward_hook(functools.partial(_leave, stances), always_call=True)
            undo += [before.remove, behind.remove]
        compiled = compiled_call(module)
        if compiled is not None:
            set_compiled_call(module, None)
            undo.append(functools.partial(set_compiled_call, module, compiled))
    return undo


@own
def _enter(stances: list[Any], module: nn.Module, inputs: tuple[Any, ...]) -> None:
    if not torch.compiler.is_compiling():  # where it is a part of something that is being compiled
        stances.append(torch.compiler.set_stance("force_eager"))


@own
def _leave(stances: list[Any], module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    if stances and not torch.compiler.is_compiling():
        stances.pop().__exit__(None, None, None)
