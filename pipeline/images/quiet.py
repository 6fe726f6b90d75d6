"""Silence decoders and encoders on standard error, where a bad file is reported by one line of ours."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cv2.utils import logging

_lock = threading.Lock()
_inside = 0  # number of decoding threads
_before = (0, 0)  # C's stderr and OpenCV's log level outside


def _c_stderr() -> tuple[ctypes.c_void_p, int] | None:
    """Return C's variable `stderr`, to which libpng and libjpeg print, and a stream to the null device."""
    try:
        libc = ctypes.CDLL(None)
        variable = ctypes.c_void_p.in_dll(libc, "stderr")
        libc.fopen.restype = ctypes.c_void_p
        nowhere = libc.fopen(b"/dev/null", b"w")
    except (OSError, ValueError, AttributeError):  # another C library, which cannot be silenced
        return None
    return (variable, nowhere) if nowhere else None


_stream = _c_stderr()


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Suppress prints of decoders and encoders of all threads in the block, but not Python's own standard error."""
    global _inside, _before
    with _lock:
        if not _inside:
            _before = ((_stream and _stream[0].value) or 0, logging.getLogLevel())
            logging.setLogLevel(logging.LOG_LEVEL_SILENT)
            if _stream:
                _stream[0].value = _stream[1]
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                logging.setLogLevel(_before[1])
                if _stream:
                    _stream[0].value = _before[0]
