"""One restoration at a time, a bounded number of others that wait, and an end to waiting."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from pipeline.serving.errors import BusyError, LateError

T = TypeVar("T")
_FIRST_GUESS_S = 10.0  # what a restoration takes, until one has been seen


class WorkQueue:
    """Hold the places of one event loop's requests: one that is worked on and `waiting` more."""

    def __init__(self, waiting: int, timeout: float) -> None:
        self.most, self.taken = waiting + 1, 0
        self._timeout, self._last = timeout, _FIRST_GUESS_S
        self._worker = ThreadPoolExecutor(1, "restore")

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Place]:
        """Hold a place. It is given back when the block ends and its work is over, whichever is later.

        Work that runs cannot be stopped: a request that gave up still occupies the processor, so also its place.

        Raises:
            BusyError: there is none.
        """
        if self.taken >= self.most:
            raise BusyError("all places in the queue are taken", max(1, math.ceil(self._last)))
        self.taken += 1
        place = Place(self._worker, self._timeout)
        try:
            yield place
        finally:
            if place.work is None or place.work.done():
                self._leave(place.seconds)
            else:
                loop = asyncio.get_running_loop()
                place.work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave, place.seconds))

    def _leave(self, seconds: float | None) -> None:
        self.taken -= 1
        if seconds is not None:
            self._last = seconds


class Place:
    """Let the holder of a place do one piece of work."""

    def __init__(self, worker: ThreadPoolExecutor, timeout: float) -> None:
        self._worker, self._timeout = worker, timeout
        self.work: Future | None = None
        self.seconds: float | None = None  # that the work took, if it ran

    async def run(self, work: Callable[[], T]) -> T:
        """Call `work` in the worker thread when those before it are done, and return its result.

        Raises:
            LateError: the time is over; work that has not begun by then never does.
        """

        def timed() -> T:
            started = time.monotonic()
            try:
                return work()
            finally:
                self.seconds = time.monotonic() - started

        self.work = future = self._worker.submit(timed)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._timeout)
        except TimeoutError as error:
            if future.done() and not future.cancelled():
                raise  # the work's own
            raise LateError(f"not done after {self._timeout:g} s; send a smaller image or try again later") from error
