"""The C library's allocator: freed feature maps are used again instead of being given back and fetched anew."""

from __future__ import annotations

import ctypes
import os

# Of glibc's malloc.h, and the most that it takes for the first.
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
_LARGEST_THRESHOLD = 32 * 2**20
_AMPLE = 2**30


def keep_freed_memory(limit: int | None = None) -> None:
    """Let this process use freed memory again, in large pages. Call it before anything is computed.

    Feature maps of a photograph are above what glibc keeps when it is freed: each layer would get fresh pages from the
    kernel, which clears them at the first touch. That is a fifth of the time of a restoration on the CPU. Other C
    libraries have no such setting and stay as they are.

    Args:
        limit: bytes that the process may grow to. What is kept has gaps, 140 MiB in all where it was measured; under
            a limit below 1 GiB they would cost more than the pages do, so nothing is kept.
    """
    if limit is not None and limit < _AMPLE:
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first large tensor
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_free_memory() -> None:
    """Give freed memory that the C library kept back to the system; where it is not glibc it keeps less anyway."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
