"""Transfer of a replica's events to a client: passed on as they arrive, as fast as the client reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager

from starlette.types import Message, Send

from pipeline.serving.transfers import Pace

_CHUNK = 256 * 1024  # bytes between two checks of the pace


class SlowReaderError(Exception):
    """Report that a client does not read its answer fast enough."""


class Stream:
    """Send the parts of a body that has no known length.

    Args:
        send: ASGI function that sends to the client.
        rate: lowest allowed rate of reading each part, bytes per second.
        counted: context manager that counts a part during its transfer.
    """

    def __init__(self, send: Send, rate: float, counted: Callable[[], AbstractContextManager[None]]) -> None:
        self._send, self._rate, self._counted = send, rate, counted

    async def open(self, message: Message) -> None:
        """Send the start of the answer. Raises SlowReaderError."""
        headers = [(name, value) for name, value in message["headers"] if name.lower() != b"content-length"]
        await send_paced(self._send, {**message, "headers": headers}, Pace(self._rate))

    async def pass_on(self, body: bytes) -> None:
        """Send a part of the body. Raises SlowReaderError."""
        with self._counted():
            await send_parts(self._send, body, Pace(self._rate))

    async def close(self, last: bytes) -> None:
        """Send the end. Raises SlowReaderError."""
        message = {"type": "http.response.body", "body": last, "more_body": False}
        await send_paced(self._send, message, Pace(self._rate))


async def send_paced(send: Send, message: Message, pace: Pace) -> None:
    """Send a message to a client that must read at this pace. Raises SlowReaderError."""
    try:
        async with asyncio.timeout_at(pace.deadline):
            await send(message)
    except TimeoutError as error:
        raise SlowReaderError from error


async def send_parts(send: Send, body: bytes, pace: Pace) -> None:
    """Send a non-final stretch of a body in parts. Raises SlowReaderError."""
    for start in range(0, len(body), _CHUNK):
        part = body[start : start + _CHUNK]
        await send_paced(send, {"type": "http.response.body", "body": part, "more_body": True}, pace)
        pace.move(len(part))
