"""A queue with one restoration at a time and limited places, which ends work that no client waits for."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from kernels_bank.runtime import gauges
from pipeline.serving.errors import BusyError, LateError

T = TypeVar("T")
Check = Callable[[str], None]  # takes the current step; raises StoppedError when no client waits any more
_log = logging.getLogger("pipeline.serving")
STOPPED = "blindsr_serve_stopped"  # a Ray gauge: the number of abandoned requests
_FIRST_GUESS_S = 10.0  # assumed time of a restoration, until one has been measured


class StoppedError(Exception):
    """End work that no client waits for any more."""


class WorkQueue:
    """Hold the places of one event loop's requests: one in progress and `waiting` more."""

    def __init__(self, waiting: int, timeout: float) -> None:
        self.most, self.stopped = waiting + 1, 0  # requests that were abandoned while waiting or in progress
        self._timeout, self._last = timeout, _FIRST_GUESS_S
        self._worker = ThreadPoolExecutor(1, "restore")
        self._places: list[Place] = []  # in order

    @property
    def taken(self) -> int:
        """Return the number of taken places."""
        return len(self._places)

    @asynccontextmanager
    async def place(self, on_move: Callable[[int], None] | None = None) -> AsyncIterator[Place]:
        """Hold a place. It is freed when both the block and its work have ended.

        Running work ends at its next check. Until then an abandoned request still occupies the processor, and so its
        place.

        Args:
            on_move: called with the number of requests ahead, now and whenever it becomes smaller.

        Raises:
            BusyError: there is no free place.
        """
        if self.taken >= self.most:
            raise BusyError("all places in the queue are taken", max(1, math.ceil(self._last)))
        place = Place(self._worker, self._timeout, on_move)
        self._places.append(place)
        place.move(self.taken - 1)
        try:
            yield place
        finally:
            if place.work is None or place.work.done():
                self._leave(place)
            else:
                loop = asyncio.get_running_loop()
                place.work.add_done_callback(lambda _: loop.call_soon_threadsafe(self._leave, place))

    def _leave(self, place: Place) -> None:
        left = self._places.index(place)
        del self._places[left]
        for ahead, other in list(enumerate(self._places))[left:]:
            other.move(ahead)
        if place.given_up is not None:
            self.stopped += 1
            _log.warning("%s: %s", place.given_up, place.stopped_at)
            gauges.set_gauge(STOPPED, self.stopped, {})
        elif place.seconds is not None:
            self._last = place.seconds


class Place:
    """Run one piece of work for the holder of a place."""

    def __init__(
        self, worker: ThreadPoolExecutor, timeout: float, on_move: Callable[[int], None] | None = None
    ) -> None:
        self._worker, self._timeout, self._on_move = worker, timeout, on_move
        self._stop = threading.Event()
        self.work: Future | None = None
        self.seconds: float | None = None  # duration of the work, if it ran
        self.given_up: str | None = None  # reason why it was abandoned
        self.stopped_at = "a request that waited is dropped"

    def move(self, ahead: int) -> None:
        """Report how many requests are ahead."""
        if self._on_move is not None:
            self._on_move(ahead)

    async def run(self, work: Callable[[Check], T]) -> T:
        """Call `work` in the worker thread after all earlier work, and return its result.

        Work that was abandoned by its caller or timed out never starts, or ends when it next calls its check.

        Raises:
            LateError: the time limit was exceeded.
        """
        self.work = future = self._worker.submit(self._timed, work)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._timeout)
        except asyncio.CancelledError:
            self._give_up("the client is gone")
            raise
        except TimeoutError as error:
            if future.done() and not future.cancelled():
                raise  # an error of the work itself
            self._give_up(f"the time limit of {self._timeout:g} s is over")
            raise LateError(f"not done after {self._timeout:g} s; send a smaller image or try again later") from error

    def _give_up(self, why: str) -> None:
        self.given_up = why
        self._stop.set()

    def _timed(self, work: Callable[[Check], T]) -> T:
        started = time.monotonic()
        self.stopped_at = "a restoration was at its end"

        def check(doing: str) -> None:
            if self._stop.is_set():
                self.stopped_at = f"a restoration is stopped after {time.monotonic() - started:.1f} s, at {doing}"
                raise StoppedError

        try:
            return work(check)
        finally:
            self.seconds = time.monotonic() - started
