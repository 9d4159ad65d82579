"""Calls of functions that have a gradient of their own, as whoever follows a pass must know them."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import torch

__all__ = ["Applies"]

# Until torch 2.13 it is Python's, with a frame that tells; since then it is native.
_PYTHON = getattr(getattr(torch.autograd.Function.apply, "__func__", None), "__code__", None)


class Applies:
    """While it is entered, which frames are calling ``torch.autograd.Function.apply``, and of which class.

    Where that is native code, a profiler of this thread sees it called; one that was there is put back afterwards.
    """

    def __init__(self) -> None:
        self._native: dict[FrameType, type] = {}
        self._before: Any = None

    def __enter__(self) -> Applies:
        if _PYTHON is None:
            self._before = sys.getprofile()
            sys.setprofile(self._profile)
        return self

    def __exit__(self, *_: Any) -> None:
        if _PYTHON is None:
            sys.setprofile(self._before)
            self._native.clear()

    def by(self, frame: FrameType) -> type | None:
        """The function whose ``apply`` a frame is, or is calling; None for any other frame."""
        if frame.f_code is _PYTHON:
            return frame.f_locals.get("cls", torch.autograd.Function)
        return self._native.get(frame)

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "c_call":
            owner = getattr(argument, "__self__", None)
            if isinstance(owner, type) and issubclass(owner, torch.autograd.Function) and argument.__name__ == "apply":
                self._native[frame] = owner
        elif event in ("c_return", "c_exception"):
            self._native.pop(frame, None)
