"""Checks of single values, for everything that users call. Each returns the value, or raises a TypeError or ValueError
that names the argument, what was expected and what came.

Nothing here knows an operator: what arguments must be to each other, :mod:`sca_kernels.functional.arguments` checks,
and what kernels rely on, :mod:`sca_kernels.ops.guards`."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

LARGEST = torch.finfo(torch.float32).max
"""Numbers enter kernels in float32."""
MOST = 2**31 - 1
"""Sizes of a layer and time steps are counted in 32 bits."""
DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))
"""Those of activations and weights; float8 and its like are floating-point to torch, which computes nothing in them."""


def describe(z: object) -> str:
    """A tensor's dtype, shape and device, and its layout where that is unusual; the type of anything else."""
    if not isinstance(z, Tensor):
        return type(z).__name__
    if z.is_nested:
        return f"a nested tensor of {z.dtype} on {z.device}"
    layout = "" if z.layout is torch.strided else f" ({z.layout})"
    return f"{z.dtype} {tuple(z.shape)} on {z.device}{layout}"


def shown(value: object) -> str:
    """``repr(value)`` of bearable length, or what can be said where that fails (an int of 5,000 digits)."""
    if isinstance(value, Tensor):
        return describe(value)
    try:
        text = repr(value)
    except Exception:  # the repr of a stranger's class may raise anything
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}..."


def boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")
    return value


def integer(name: str, value: Any, least: int = 1, most: int = MOST) -> int:
    """An int in [least, most]; a NumPy integer counts as one, a bool does not."""
    if not isinstance(value, (int, torch.SymInt)):
        if not isinstance(value, numbers.Integral):
            raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
        value = int(value)
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got bool")
    if not least <= value <= most:
        bounds = f"at least {least}" if value < least else f"at most {most}"
        raise ValueError(f"{name}: expected {bounds}, got {shown(value)}")
    return value


def sizes(name: str, value: Any, least: int, many: int) -> tuple[int, ...]:
    """One int for all of so many spatial dimensions, or one for each, of at least so much."""
    each = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,) * many
    if len(each) != many:
        raise ValueError(f"{name}: expected one int{' or two' if many == 2 else ''}, got {shown(value)}")
    return tuple(integer(name, size, least) for size in each)


def pair(name: str, value: Any, least: int) -> tuple[int, int]:
    """One int for both spatial dimensions, or two, of at least so many."""
    return sizes(name, value, least, 2)


def number(name: str, value: Any) -> int | float:
    """A finite number in the range of float32; a NumPy scalar counts as one, a bool does not."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
        value = float(value)
    if not abs(value) <= LARGEST:
        raise ValueError(f"{name}: expected a finite number (of float32's range), got {shown(value)}")
    return value


def one_of(name: str, value: Any, known: Iterable[str], otherwise: str = "") -> str:
    """A string that ``known`` holds; ``otherwise`` ends the list in the message."""
    known = list(known)
    if isinstance(value, str) and value in known:
        return value
    kind = ValueError if isinstance(value, str) else TypeError
    raise kind(f"{name}: expected one of {', '.join(known)}{otherwise}, got {shown(value)}")


def instance(name: str, value: Any, kind: type | tuple[type, ...], what: str) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {what}, got {describe(value)}")
    return value


def same_device(name: str, z: Tensor, other: Tensor, other_name: str = "x") -> None:
    """ValueError unless z is where ``other`` is."""
    if z.device != other.device:
        raise ValueError(f"{name}: expected a tensor on {other.device}, where {other_name} is, got one on {z.device}")


def device(name: str, value: Any) -> torch.device:
    """A torch.device, or what names one."""
    try:
        return torch.device(value)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:  # the last two of an int too large
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: expected a torch.device or its name, got {shown(value)}") from error


def weights(layer: Callable[..., Any], *arguments: Any, **named: Any) -> dict[str, Any]:
    """The arguments of a torch layer by name, with its defaults; those checked that all layers with weights have."""
    bound = inspect.signature(layer).bind(*arguments, **named)
    bound.apply_defaults()
    given = bound.arguments
    boolean("bias", given["bias"])
    dtype = given["dtype"]
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in DTYPES):
        raise TypeError(f"dtype: expected a floating-point dtype or None, got {shown(dtype)}")
    if given["device"] is not None:
        device("device", given["device"])
    return given


def elements(name: str, sizes: Sequence[int]) -> None:
    """Whether a weight of these sizes can exist: 2**40 elements are four terabytes."""
    if math.prod(sizes) > 2**40:
        raise ValueError(f"{name}: expected a weight of at most 2**40 elements, got {' x '.join(map(str, sizes))}")


def is_traced(z: Any) -> bool:
    """Whether z stands for a tensor while a network is traced: modules let it pass to the functions that know it."""
    return not isinstance(z, (Tensor, type)) and hasattr(z, "__torch_function__")


def is_plain(z: Any) -> bool:
    """Whether z is a tensor with strides: not sparse, not nested."""
    return isinstance(z, Tensor) and z.layout is torch.strided and not z.is_nested
