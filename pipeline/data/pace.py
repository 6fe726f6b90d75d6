"""The pace of Ray Data's scheduler, which runs in a thread of the training worker."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

_TURN = 0.02  # seconds


class Paced(ExecutionCallback):
    """Let the scheduler of a Ray Dataset turn at most fifty times a second.

    It waits for the next block that a task has made. While the feed is as far ahead as it may be, such blocks are there
    and may not be taken: then the wait ends at once, the scheduler turns without a pause, and the thread that trains
    waits for the interpreter's lock. A turn takes all blocks and starts all tasks that it may, so fifty are enough.
    """

    def __init__(self) -> None:
        self._next = 0.0

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """Wait until the next turn may begin. Ray calls this after each turn, in the scheduler's thread."""
        wait = self._next - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        self._next = time.monotonic() + _TURN
