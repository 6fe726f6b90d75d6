"""Let Python sleep under libfaketime 0.9.10, whose clock_nanosleep knows no absolute times. On a drill's PYTHONPATH."""

import select
import time


def _sleep(seconds: float) -> None:
    if seconds < 0:
        raise ValueError("sleep length must be non-negative")
    select.select([], [], [], seconds)


time.sleep = _sleep
