"""What others put around a model or its parts: the same modules, under other names."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

__all__ = ["is_compiled", "named_modules", "plain_name", "unwrapped"]

#: children that torch.compile and activation checkpointing put between a module and its parent
_WITHIN = ("_orig_mod", "_checkpoint_wrapped_module")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside any wrappers of torch.compile, DistributedDataParallel and DataParallel."""
    while True:
        inner = _inner(model)
        if inner is None and isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules of a model but wrappers, by the names that they have without those."""
    for name, module in model.named_modules():
        if _inner(module) is None:
            yield plain_name(name), module


def plain_name(name: str) -> str:
    """A module's name without those of wrappers."""
    return ".".join(part for part in name.split(".") if part not in _WITHIN)


def is_compiled(module: nn.Module) -> bool:
    """Whether it is what torch.compile returned for a module."""
    return "_orig_mod" in module._modules


def _inner(module: nn.Module) -> nn.Module | None:
    return next((module._modules[name] for name in _WITHIN if name in module._modules), None)
