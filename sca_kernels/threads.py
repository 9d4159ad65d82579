"""Threads of OpenMP beside other processes: spin at barriers while the cores are free, sleep while they are wanted."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import time
from collections import deque
from pathlib import Path

import torch

PERIOD = 0.1
"""Seconds between two looks."""
CROWDED, FREE = 0.1, 0.05
"""Share of the time for which threads that could run wait for a core: it is crowded from the one on, in the mean of
``SOON`` looks, and no longer below the other, in the mean of ``CALM``. Beside a busy process they wait for 0.4 to 0.8
of it, beside one that is busy for a fifth of the time 0.1 to 0.2, alone 0.01; but single looks say anything, for every
kernel has its housekeeping."""
SOON, CALM = 5, 30

_GRAIN = 1 << 16  # elements for a thread, of which torch wants half as many

_watch: threading.Thread | None = None
_lock = threading.Lock()


def share_cores() -> bool:
    """Let this process's OpenMP threads sleep at barriers while other processes want their cores.

    A thread of libgomp spins for some milliseconds at a barrier before it sleeps. With one core to each that is
    fastest; where its partner waits for a core that another process has, it keeps the partner from the core it spins
    on, and every barrier takes a time slice: training beside one busy process falls to a twentieth of its speed. A
    small thread looks ten times a second whether threads wait for cores. While they do, it holds a second team of
    threads, which does nothing: with more threads than cores libgomp spins a three-hundredth of that. No setting of the
    process changes, and no result. Call it at any time; ``sca train`` does. It ends with the process, and is not
    inherited by a fork.

    Where GOMP_SPINCOUNT or OMP_WAIT_POLICY are set, they decide.

    Returns:
        Whether it could; False where threads don't tell how long they wait for cores (other systems than Linux).
    """
    global _watch
    with _lock:
        if _watch is None and sys.platform == "linux" and _seconds_waited():
            _watch = threading.Thread(target=_look_after, name="share_cores", daemon=True)
            _watch.start()
    return _watch is not None


def _seconds_waited() -> dict[str, float]:
    """How long each thread of this process could have run and waited for a core, since it began."""
    waited = {}
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError, IndexError):  # it has ended
            waited[path.parent.name] = int(path.read_text().split()[1]) / 1e9
    return waited


class _Crowd:
    """Whether cores are wanted by more threads than there are, from what each look saw."""

    def __init__(self) -> None:
        self.here = False
        self._shares: deque[float] = deque(maxlen=SOON)

    def look(self, share: float) -> bool:
        self._shares.append(share)
        mean = sum(self._shares) / len(self._shares)
        if len(self._shares) == self._shares.maxlen and (mean < FREE if self.here else mean > CROWDED):
            self.here = not self.here
            self._shares = deque(maxlen=CALM if self.here else SOON)
        return self.here


def _look_after() -> None:
    crowd, release = _Crowd(), None
    before, then = _seconds_waited(), time.monotonic()
    while True:
        time.sleep(PERIOD)
        waited, now = _seconds_waited(), time.monotonic()
        share = sum(seconds - before.get(name, seconds) for name, seconds in waited.items()) / (now - then)
        before, then = waited, now
        if crowd.look(share) and release is None:
            release = threading.Event()
            threading.Thread(target=_hold_team, args=(release,), name="share_cores team", daemon=True).start()
        elif not crowd.here and release is not None:
            release.set()
            release = None


def _hold_team(release: threading.Event) -> None:
    """Own a team of more threads than there are cores, until released: it ends with the thread that made it."""
    size = len(os.sched_getaffinity(0)) + 1
    torch.get_num_threads()  # torch gives a thread its number once, at its first question
    set_num_threads = getattr(ctypes.CDLL(None), "omp_set_num_threads", None)
    if set_num_threads is not None:
        set_num_threads(size)  # of this thread's teams alone
    torch.empty(size * _GRAIN, dtype=torch.uint8, device="cpu").fill_(0)
    release.wait()
