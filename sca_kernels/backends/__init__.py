"""Backends and the choice between them.

One backend is one module of this package that defines ``BACKEND``; it is imported at the first choice, never at
``import sca_kernels``.
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
import os
import pkgutil
from collections.abc import Hashable, Sequence
from typing import Any

import torch

from ..channels import Bits
from .base import Backend, BackendError, in_full

_log = logging.getLogger(__name__)


@functools.cache
def registry() -> dict[str, Backend]:
    """All backends by name, the preferred first."""
    modules = (
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__) if m.name != "base"
    )
    return {b.name: b for b in sorted((module.BACKEND() for module in modules), key=lambda b: -b.priority)}


@functools.cache
def _able(device: torch.device, dtype: torch.dtype) -> tuple[Backend, ...]:
    """The backends that may be the default for tensors of this kind, the best first; why others are not is logged
    once."""
    able = []
    for backend in registry().values():
        if device.type in backend.only_by_name:
            continue
        ok, reason = backend.supports(device, dtype)
        if ok:
            able.append(backend)
        elif backend.priority and not able and not reason.startswith("device"):
            _log.warning("backend %s is off for %s on %s: %s", backend.name, dtype, device, reason)
    if not able:
        raise TypeError(f"x: no backend runs {dtype} on {device}")
    return tuple(able)


def find(name: str, device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend for tensors of this kind: the named one, or, for an empty name, that of the environment variable
    SCA_KERNELS_BACKEND, or the best that can.

    Raises:
        ValueError: the named backend does not exist, or can't run this; the message says why not and what else there
        is.
    """
    if not name and (name := _or_environment(name)):
        check_name(name, "SCA_KERNELS_BACKEND")
    if not name:
        return _able(device, dtype)[0]
    check_name(name)
    backend = registry()[name]
    ok, reason = backend.supports(device, dtype)
    if not ok:
        others = [b.name for b in registry().values() if b is not backend and b.supports(device, dtype)[0]]
        raise ValueError(
            f"backend: {name!r} can't run {dtype} on {device}: {reason}. Others that can: {', '.join(others) or 'none'}"
        )
    return backend


def choose(name: str, op: str, like: torch.Tensor, arguments: Sequence[Any] = ()) -> Backend:
    """:func:`find` for an operator that is about to run, on tensors like ``like``. Where no backend is named, one whose
    kernels failed for arguments of this kind is passed over."""
    backend = find(name, like.device, like.dtype)
    if not backend.failures or _or_environment(name):
        return backend
    kind = _kind((op, like.device, like.dtype, arguments))
    return next(other for other in _able(like.device, like.dtype) if kind not in other.failures)


def run(name: str, op: str, like: torch.Tensor, *arguments: Any) -> Any:
    """Run ``op`` on the backend of :func:`choose`, with arguments as in :class:`Backend`; counted once it has run.

    Raises:
        BackendError: a kernel of the named backend failed to compile, load or start. Where none was named, the next
            best one takes over for arguments of this kind from then on, and the reason is logged once.
    """
    backend = choose(name, op, like, arguments)
    try:
        result = getattr(backend, op)(*arguments)
    except BackendError as error:
        if _or_environment(name) or backend is _able(like.device, like.dtype)[-1]:
            raise
        backend.failures[_kind((op, like.device, like.dtype, arguments))] = str(error)
        cause = f"; {in_full(error.__cause__)}" if error.__cause__ else ""
        _log.warning(
            "backend %s is off for %s of this kind (%s on %s): %s%s",
            *(backend.name, op, like.dtype, like.device, error, cause),
        )
        return run(name, op, like, *arguments)
    backend.calls[op] += 1
    return result


_STEPS = 64  # more of something is no constant of a kernel


def _kind(value: Any) -> Hashable:
    """What kernels are compiled for: of tensors the dtype and what their strides are multiples of, which tells their
    layout, too; of large numbers what they are multiples of; the rest as it is."""
    if isinstance(value, torch.Tensor):
        return value.dtype, *(math.gcd(stride, 16) for stride in value.stride())
    if isinstance(value, Bits):
        return value.channels_last
    if isinstance(value, int) and value > _STEPS:
        return math.gcd(value, 16)
    return tuple(map(_kind, value)) if isinstance(value, (list, tuple)) else value


def _or_environment(name: str) -> str:
    return name or os.environ.get("SCA_KERNELS_BACKEND", "")


def check_name(name: str, argument: str = "backend") -> None:
    """ValueError unless a backend of that name exists."""
    if name not in registry():
        raise ValueError(f"{argument}: expected one of {', '.join(registry())} or None, got {name!r}")
