"""Keep what decoders and encoders print off standard error, where a user reads one line of ours for a bad file."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from cv2.utils import logging

_lock = threading.Lock()
_inside = 0  # threads that decode
_before = (0, 0)  # C's stderr and OpenCV's log level outside


def _c_stderr() -> tuple[ctypes.c_void_p, int] | None:
    """C's variable `stderr`, through which libpng and libjpeg print, and a stream to nowhere."""
    try:
        libc = ctypes.CDLL(None)
        variable = ctypes.c_void_p.in_dll(libc, "stderr")
        libc.fopen.restype = ctypes.c_void_p
        nowhere = libc.fopen(b"/dev/null", b"w")
    except (OSError, ValueError, AttributeError):  # another C library: its lines stay
        return None
    return (variable, nowhere) if nowhere else None


_stream = _c_stderr()


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Let no decoder or encoder print in the block, in whatever thread; Python's own standard error stays as it is."""
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
