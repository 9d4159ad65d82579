"""Calls of functions that have a gradient of their own, as whoever follows a pass must know them."""

from __future__ import annotations

import dis
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

__all__ = ["Applies"]

# Until torch 2.13 it is Python's, with a frame that tells; since then it is native.
_PYTHON = getattr(getattr(torch.autograd.Function.apply, "__func__", None), "__code__", None)
# What a program that asks for an object's class runs at that moment, where it calls nothing.
_ASKING = ("LOAD_ATTR", "LOAD_METHOD", "MATCH_CLASS")


class Applies:
    """While it is entered, which frames are calling ``torch.autograd.Function.apply``, and of which class.

    Where that is native code, a profiler of this thread sees it called; one that was there is put back afterwards.
    """

    def __init__(self) -> None:
        self._native: dict[FrameType, Callable] = {}
        self._before: Any = None

    def __enter__(self) -> Applies:
        if _PYTHON is None:
            self._before = sys.getprofile()
            sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: Any) -> None:
        if _PYTHON is None:
            # Until Python 3.11 cProfile is there, too, and is no function that could be put back.
            getattr(self._before, "enable", lambda: sys.setprofile(self._before))()
            self._native.clear()

    def by(self, frame: FrameType) -> type | None:
        """The function whose ``apply`` a frame is, or is calling; None for any other frame."""
        if frame.f_code is _PYTHON:
            return frame.f_locals.get("cls", torch.autograd.Function)
        called = self._native.get(frame)
        owner = getattr(called, "__self__", None)
        is_function = isinstance(owner, type) and issubclass(owner, torch.autograd.Function)
        return owner if is_function and called.__name__ == "apply" else None

    def may_ask(self, frame: FrameType) -> bool:
        """Whether it may be an ``apply`` that asks for an object's class in a frame: also one that other native code
        calls, as ``map`` or a ``functools.partial``, which no profiler sees."""
        if _PYTHON is not None:
            return False
        if frame in self._native:
            return self._native[frame] not in (isinstance, getattr)
        return not dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith(_ASKING)

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call":
            self._native[frame] = argument
        elif event in ("c_return", "c_exception"):
            self._native.pop(frame, None)
