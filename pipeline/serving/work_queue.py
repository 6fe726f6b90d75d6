"""One restoration at a time, a bounded number of others that wait, and an end to work that nobody waits for."""

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
Check = Callable[[str], None]  # given what the work is doing; raises StoppedError when nobody waits for it any more
_log = logging.getLogger("pipeline.serving")
STOPPED = "blindsr_serve_stopped"  # a gauge of Ray's: requests that were given up
_FIRST_GUESS_S = 10.0  # what a restoration takes, until one has been seen


class StoppedError(Exception):
    """End work that nobody waits for any more."""


class WorkQueue:
    """Hold the places of one event loop's requests: one that is worked on and `waiting` more."""

    def __init__(self, waiting: int, timeout: float) -> None:
        self.most, self.stopped = waiting + 1, 0  # requests that were given up, while they waited or were worked on
        self._timeout, self._last = timeout, _FIRST_GUESS_S
        self._worker = ThreadPoolExecutor(1, "restore")
        self._places: list[Place] = []  # in their order

    @property
    def taken(self) -> int:
        """Count the places that are taken."""
        return len(self._places)

    @asynccontextmanager
    async def place(self, on_move: Callable[[int], None] | None = None) -> AsyncIterator[Place]:
        """Hold a place. It is given back when the block ends and its work is over, whichever is later.

        Work that runs ends at its next check: until then a request that gave up still occupies the processor, so also
        its place.

        Args:
            on_move: called with the number of requests ahead, now and whenever that becomes smaller.

        Raises:
            BusyError: there is none.
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
    """Let the holder of a place do one piece of work."""

    def __init__(
        self, worker: ThreadPoolExecutor, timeout: float, on_move: Callable[[int], None] | None = None
    ) -> None:
        self._worker, self._timeout, self._on_move = worker, timeout, on_move
        self._stop = threading.Event()
        self.work: Future | None = None
        self.seconds: float | None = None  # that the work took, if it ran
        self.given_up: str | None = None  # why
        self.stopped_at = "a request that waited is dropped"

    def move(self, ahead: int) -> None:
        """Tell how many requests are ahead."""
        if self._on_move is not None:
            self._on_move(ahead)

    async def run(self, work: Callable[[Check], T]) -> T:
        """Call `work` in the worker thread when those before it are done, and return its result.

        Work that was given up, by a cancelled caller or by time, never begins, or ends when it next calls what it is
        given.

        Raises:
            LateError: the time is over.
        """
        self.work = future = self._worker.submit(self._timed, work)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._timeout)
        except asyncio.CancelledError:
            self._give_up("the client is gone")
            raise
        except TimeoutError as error:
            if future.done() and not future.cancelled():
                raise  # the work's own
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
