"""Host memory: keep what was freed, so that large activations are not paged in again at every step."""

from __future__ import annotations

import ctypes
import logging
import sys

_log = logging.getLogger(__name__)

# mallopt parameters of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_MAX_INT = 2**31 - 1

_active = False


def reuse_host_memory() -> bool:
    """Make the C library keep freed memory instead of handing it back to the kernel.

    glibc serves every allocation above 32 MiB by ``mmap`` and unmaps it when it is freed; each use of such a tensor
    then pays one page fault per 4 KiB, several times what the kernels themselves cost. This call switches that off for
    the whole process (all libraries): the process keeps its peak memory until it ends. It cannot be undone. Call it
    once, before the first large tensor; ``sca train`` and the benchmarks do.

    Returns:
        True when the setting took effect; False where the C library has no ``mallopt`` (musl, macOS, Windows).
    """
    global _active
    if not _active and sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            _active = bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _MAX_INT))
    if not _active:
        _log.info("this C library cannot keep freed memory; large tensors will be paged in at every allocation")
    return _active


def is_reusing_host_memory() -> bool:
    """Whether :func:`reuse_host_memory` took effect in this process."""
    return _active
