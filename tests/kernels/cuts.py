"""What the tests of the CUDA kernels and of their plan share: the emulation, and tensors of all kinds of tiles, cut as
large ones are."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "cuda_emulation"))
import emulated

sys.path.pop(0)

EMULATED = pytest.mark.skipif(emulated.compiler() is None, reason="the emulation needs g++")
MANY_TILES, GROUPS = {"_MAX_PROGRAMS": 1}, {"_GROUPED_ABOVE": 1}
"""Constants of :mod:`sca_kernels.gpu.plan`, for the fixture ``planned``."""

CUTS = pytest.mark.parametrize(
    "cut", [{}, MANY_TILES, GROUPS], ids=["a tile per block", "many tiles", "groups of splits"]
)
KINDS = {
    "planes": ((4, 40, 6, 8, 8), False),
    "interleaved": ((3, 130, 24, 2, 2), True),
    "folded": ((3, 130, 24, 2, 2), False),
    "folded, channels in two stripes": ((3, 90, 20, 7, 7), False),
    "folded over more columns than a tile has": ((2, 70, 8, 11, 11), False),
}
EACH_KIND = pytest.mark.parametrize(("shape", "channels_last"), KINDS.values(), ids=KINDS)
STEPS = [(t, 2, 3, 5) for t in (1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 32, 33, 63, 64, 65, 129)]
SIZES = [(3, 2, c, s) for c in (1, 13, 16) for s in (1, 3, 16, 49, 64, 1000)]
"""[T, N, C, S], by numbers of steps and by sizes."""
