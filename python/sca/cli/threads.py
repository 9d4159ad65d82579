"""How long the threads of OpenMP spin at a barrier before they sleep: said before torch is loaded, whose library reads
it then."""

from __future__ import annotations

import os
import sys

SPINS = "1000"
"""Turns of libgomp's loop: some ten microseconds, where its default of 300,000 is some milliseconds. A thread whose
partner waits for a core keeps it from that core for as long as it spins: with one other busy process on as many cores
as there are threads, every barrier then takes a time slice. What shorter spins cost where nothing else runs, benchmark
A9 measures."""

_SAID = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def spin_briefly() -> None:
    """Set the number of spins for this process and those that it starts, unless the environment says how to wait, or
    torch is loaded already."""
    if "torch" not in sys.modules and not any(name in os.environ for name in _SAID):
        os.environ["GOMP_SPINCOUNT"] = SPINS
