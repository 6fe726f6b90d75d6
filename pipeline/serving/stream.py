"""A replica's events on their way to a client: passed on as they come, as fast as the client reads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager

from starlette.types import Message, Send

from pipeline.serving.transfers import Pace

CHUNK = 256 * 1024  # bytes between two looks at the pace


class SlowReaderError(Exception):
    """Report that a client does not read what it asked for."""


class Stream:
    """Send the parts of a body that has no known length.

    Args:
        send: to the client.
        rate: bytes a second at which each part is read at least.
        counted: counts a part while it is on its way.
    """

    def __init__(self, send: Send, rate: float, counted: Callable[[], AbstractContextManager[None]]) -> None:
        self._send, self._rate, self._counted = send, rate, counted

    async def open(self, message: Message) -> None:
        """Send the start of the answer. Raises SlowReaderError."""
        headers = [(name, value) for name, value in message["headers"] if name.lower() != b"content-length"]
        await self._paced({**message, "headers": headers}, Pace(self._rate))

    async def pass_on(self, body: bytes) -> None:
        """Send what has come. Raises SlowReaderError."""
        pace = Pace(self._rate)
        with self._counted():
            for start in range(0, len(body), CHUNK):
                part = body[start : start + CHUNK]
                await self._paced({"type": "http.response.body", "body": part, "more_body": True}, pace)
                pace.move(len(part))

    async def close(self, last: bytes) -> None:
        """Send the end. Raises SlowReaderError."""
        await self._paced({"type": "http.response.body", "body": last, "more_body": False}, Pace(self._rate))

    async def _paced(self, message: Message, pace: Pace) -> None:
        try:
            async with asyncio.timeout_at(pace.deadline):
                await self._send(message)
        except TimeoutError as error:
            raise SlowReaderError from error
