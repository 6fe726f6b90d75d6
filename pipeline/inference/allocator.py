"""Settings of the C library's allocator: keep the memory of freed feature maps for reuse."""

from __future__ import annotations

import ctypes
import os

# From glibc's malloc.h, with the largest value that it accepts for the first.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
_LARGEST_THRESHOLD = 32 * 2**20
_AMPLE = 2**30


def keep_freed_memory(limit: int | None = None) -> None:
    """Let this process reuse freed memory, in large pages. Call this before any computation.

    Feature maps of a photograph are larger than the blocks that glibc keeps after free. Each layer would get fresh
    pages from the kernel, which clears them at the first touch: a fifth of the time of a restoration on the CPU. Other
    C libraries have no such setting and are left alone.

    Args:
        limit: bytes that the process may grow to. Kept memory has gaps, measured as 140 MiB in all. Under a limit below
            1 GiB they would cost more than fresh pages, so nothing is kept.
    """
    if limit is not None and limit < _AMPLE:
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first large tensor
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_free_memory() -> None:
    """Return freed memory kept by the C library to the system; libraries other than glibc keep less anyway."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
