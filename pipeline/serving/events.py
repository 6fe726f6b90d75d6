"""Progress of a restoration as server-sent events: place in the queue, steps, finished windows, result.

A refusal before work is queued is an ordinary answer. Later an error is the last event.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from pipeline.images.encode import encode_photograph
from pipeline.images.photograph import Photograph
from pipeline.inference.planes import to_type
from pipeline.inference.progress import Listener, Part, RemainingTime, Step
from pipeline.serving.answer import Answer
from pipeline.serving.errors import error_event, event
from pipeline.serving.media import EVENTS
from pipeline.serving.work_queue import WorkQueue

_SILENCE_S = 10.0  # silence before a keep-alive comment, since proxies close silent connections
_APART_S = 0.1  # least time between two events of one stage
_QUALITY = 85  # JPEG quality of a finished window, which the whole picture replaces


class EventStream(Response):
    """Answer with events, the last of which is `result` or `error`.

    Args:
        queue: queue for the work.
        work: function that restores, given a listener to its steps.
        windows: whether finished windows are sent.
        said: function from an error to its status and text for the client.
    """

    def __init__(
        self,
        queue: WorkQueue,
        work: Callable[[Listener], Answer],
        *,
        windows: bool,
        said: Callable[[Exception], tuple[int, str]],
    ) -> None:
        # X-Accel-Buffering: otherwise nginx would keep events until its buffer is full.
        super().__init__(media_type=EVENTS, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._queue, self._work, self._windows, self._said = queue, work, windows, said

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events. Raises BusyError, before sending anything, if there is no place."""
        messages: asyncio.Queue[bytes | None] = asyncio.Queue()
        async with self._queue.place(lambda ahead: messages.put_nowait(event("queue", {"ahead": ahead}))) as place:
            tell = _Teller(asyncio.get_running_loop(), messages, windows=self._windows)
            work = asyncio.create_task(place.run(lambda check: self._work(tell.listener(check))))
            work.add_done_callback(lambda _: messages.put_nowait(None))
            try:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                while (message := await _next(messages)) is not None:
                    await send({"type": "http.response.body", "body": message, "more_body": True})
                last = await self._last(work)
                await send({"type": "http.response.body", "body": last, "more_body": False})
            finally:
                work.cancel()  # the client has disconnected
                with suppress(asyncio.CancelledError, Exception):
                    await work

    async def _last(self, work: asyncio.Task[Answer]) -> bytes:
        try:
            return b"event: result\ndata: " + (await work).body + b"\n\n"
        except Exception as error:  # any error: an event is the only way to report it
            return error_event(*self._said(error))


async def _next(messages: asyncio.Queue[bytes | None]) -> bytes | None:
    try:
        async with asyncio.timeout(_SILENCE_S):
            return await messages.get()
    except TimeoutError:
        return b": still there\n\n"


class _Teller:
    """Turn steps into events, in the thread that restores."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, messages: asyncio.Queue[bytes | None], *, windows: bool
    ) -> None:
        self._loop, self._messages, self._windows = loop, messages, windows
        self._last = ("", 0, 0)
        self._at = 0.0

    def listener(self, check: Callable[[str], None]) -> Listener:
        """Start the clock and return a listener; `check` raises when no client waits for the work any more."""
        remaining = RemainingTime()

        def listen(step: Step) -> None:
            check(step.text())
            if step.part is not None and self._windows:
                self._put(event("window", _encoded(step.part)))
            if self._is_due(step):
                left = remaining.seconds(step.share)
                self._put(
                    event(
                        "step",
                        {
                            "stage": step.stage,
                            "done": step.done,
                            "total": step.total,
                            "share": round(step.share, 4),
                            "seconds_left": None if left is None else round(left, 1),
                        },
                    )
                )

        return listen

    def _is_due(self, step: Step) -> bool:
        now, what = time.monotonic(), (step.stage, step.done, step.total)
        if what == self._last and now < self._at + _APART_S and step.share < 1:
            return False
        self._last, self._at = what, now
        return True

    def _put(self, message: bytes) -> None:
        self._loop.call_soon_threadsafe(self._messages.put_nowait, message)


def _encoded(part: Part) -> dict[str, Any]:
    pixels = to_type(part.pixels, np.dtype(np.uint8))
    image = base64.b64encode(encode_photograph(Photograph(pixels, "jpeg"), _QUALITY)).decode("ascii")
    return {
        "left": part.left,
        "top": part.top,
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "image": image,
    }
