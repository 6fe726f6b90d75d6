"""Signals that request the end of a process, each of which may arrive twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import FrameType

# `timeout` sends its signal to the command and then to its process group, so the command gets it twice.
_SAME_S = 1.0


def handler(first: Callable[[], None], later: Callable[[], None]) -> Callable[[int, FrameType | None], None]:
    """Return a signal handler that takes signals within a second of the first for the same request.

    Args:
        first: called at the first request.
        later: called at each later request.
    """
    since: float | None = None

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal since
        if since is None:
            since = time.monotonic()
            first()
        elif time.monotonic() - since > _SAME_S:
            later()

    return handle
