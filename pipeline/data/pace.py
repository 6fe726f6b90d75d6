"""The pace of Ray Data's scheduler, which runs in a thread of the training worker."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ray.data._internal.execution.execution_callback import ExecutionCallback

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

_TURN = 0.02  # seconds


class Paced(ExecutionCallback):
    """Limit the loop of a Ray Dataset's scheduler to fifty turns a second.

    Each turn waits for the next block from a task. While the feed is as far ahead as allowed, blocks are ready but may
    not be taken: the wait ends at once, the scheduler spins, and the training thread waits for the GIL. A turn takes
    all blocks and starts all tasks that it may, so fifty are enough.
    """

    def __init__(self) -> None:
        self._next = 0.0

    def on_execution_step(self, executor: StreamingExecutor) -> None:
        """Wait until the next turn may begin. Ray calls this after each turn, in the scheduler's thread."""
        wait = self._next - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        self._next = time.monotonic() + _TURN
