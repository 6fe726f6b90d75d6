"""The gate in front of the replicas, in the process that holds the clients' connections.

A request is forwarded once its body has arrived, within the limits of size, number and rate. Answers are sent to the
client whole, except events, which are passed on as they arrive. The death of a replica is reported as an ordinary
answer or event.
"""

from __future__ import annotations

import asyncio
import logging
import re
from contextlib import suppress
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serving.errors import (
    TOLD,
    BusyError,
    GoneError,
    LateError,
    NoReplicaError,
    RequestError,
    SlowError,
    TooLargeError,
    error_body,
    error_event,
    retry_headers,
    status_of,
)
from pipeline.serving.media import EVENTS
from pipeline.serving.settings import ServeSettings
from pipeline.serving.stream import SlowReaderError, Stream, send_paced, send_parts
from pipeline.serving.transfers import Pace, Transfers, client_key

_log = logging.getLogger("pipeline.serving")
_RETRY_S = 5  # about the start time of a new replica
_PAGE_S = 10.0  # time limit for everything except a restoration
_BEYOND_S = 10.0  # how much longer than a replica's own limit the gate waits for it
# Limits for reading and discarding the rest of a request after its answer, since a client that reads only after sending
# everything would otherwise get a reset instead of the answer.
_LINGER_S, _LINGER_IDLE_S = 30.0, 5.0
# The request headers that are passed to a replica. The others are for servers in between, including Ray Serve's.
_PASSED = {b"accept", b"content-encoding", b"content-type", b"host"}
_REQUEST_ID, _HARMLESS = b"x-request-id", re.compile(rb"[\w.:-]{1,64}")


@dataclass
class Answer:
    """Hold a complete answer."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass
class Connection:
    """Hold the two directions of a request, and how much of it was read."""

    receive: Receive
    send: Send
    unread: bool  # whether more of the request's body may follow
    gone: bool = False

    async def read(self) -> bytes:
        """Return the next bytes of the body; set `unread` and `gone`."""
        message = await self.receive()
        self.gone = message["type"] == "http.disconnect"
        self.unread = bool(message.get("more_body")) and not self.gone
        return bytes(message.get("body", b""))


@dataclass
class Collected:
    """Collect the answer as an ASGI `send`, so that no partial answer is sent."""

    stream: Stream
    start: Message | None = None
    parts: list[bytes] = field(default_factory=list)
    whole: bool = False
    streams: bool = False  # whether the answer consists of events, which are passed on

    async def __call__(self, message: Message) -> None:
        """Keep a message, or pass it on. Raises SlowReaderError."""
        if message["type"] == "http.response.start":
            self.start = message
            self.streams = any(value.startswith(EVENTS.encode()) for _, value in message.get("headers", []))
            if self.streams:
                await self.stream.open(message)
        elif message["type"] == "http.response.body":
            self.whole = not message.get("more_body", False)
            body = bytes(message.get("body", b""))
            if self.streams:
                await self.stream.pass_on(body)
            else:
                self.parts.append(body)

    def answer(self) -> Answer | None:
        """Return the answer if it is complete. An error that is not JSON becomes `{"error": ...}`."""
        if self.start is None or not self.whole or self.streams:
            return None
        status, headers, body = self.start["status"], list(self.start.get("headers", [])), b"".join(self.parts)
        kinds = [value.partition(b";")[0].strip().lower() for name, value in headers if name.lower() == b"content-type"]
        if status == 404 and kinds == [b"text/plain"]:
            return None  # Ray Serve's own answer: the application is not running
        if status >= 400 and kinds != [b"application/json"]:
            headers = [(name, value) for name, value in headers if name.lower() in {b"retry-after", b"allow"}]
            return _error(status, body.decode("utf-8", "replace") or f"status {status}", headers)
        return Answer(status, headers, body)


class Gate:
    """Guard the ASGI application that forwards to replicas."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app, self._settings = app, settings
        self._transfers = Transfers(settings.uploads, settings.transfers_per_client)
        self._forwarded = 0
        # Replicas count their own places. This limits the requests that wait while there is no replica.
        self._most = settings.replicas * (settings.queue + 1) + settings.uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1003})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"0" if scope["method"] in {"GET", "HEAD", "OPTIONS"} else b"")
        unread = announced != b"0" or b"transfer-encoding" in headers
        connection = Connection(receive, send, unread)
        client = client_key(scope.get("client"))
        try:
            answer = await self._answered(scope, connection, client, announced)
        except TOLD as error:
            if connection.gone:
                return
            text = [(name.lower().encode(), value.encode()) for name, value in retry_headers(error).items()]
            answer = _error(status_of(error), str(error), text)
        if answer is not None:
            with self._transfers.answer(client):
                await self._deliver(answer, connection)

    async def _answered(self, scope: Scope, connection: Connection, client: str, announced: bytes) -> Answer | None:
        """Return the answer; None if it was already sent to the client."""
        if not scope["path"].startswith("/"):
            raise RequestError("the target of a request is a path")
        if connection.unread and any(name == b"upgrade" for name, _ in scope["headers"]):
            # The HTTP server takes data after the headers for another protocol, and does not pass them on.
            raise RequestError("a request with a body cannot be upgraded; send it without the header Upgrade")
        if scope["method"] != "POST" or scope["path"] != "/restore":
            return await self._forward(scope, connection, client, b"", _PAGE_S)
        if self._forwarded >= self._most:
            raise BusyError("all places are taken", _RETRY_S)
        if announced.isdigit() and int(announced[:19]) > self._settings.max_upload:
            raise self._too_large()
        with self._transfers.upload(client):
            body = await self._body(connection)
        return await self._forward(scope, connection, client, body, self._settings.timeout + _BEYOND_S)

    async def _body(self, connection: Connection) -> bytes:
        """Read the body. Raises TooLargeError, SlowError or GoneError."""
        pace = Pace(self._settings.min_rate, self._settings.upload_timeout)
        body = bytearray()
        while True:
            try:
                async with asyncio.timeout_at(pace.deadline):
                    part = await connection.read()
            except TimeoutError as error:
                raise self._too_slow() from error
            if connection.gone:
                raise GoneError("the connection was closed before the request was there")
            if len(body) + len(part) > self._settings.max_upload:
                raise self._too_large()
            pace.move(len(part))
            body += part
            if not connection.unread:
                return bytes(body)

    async def _forward(
        self, scope: Scope, connection: Connection, client: str, body: bytes, seconds: float
    ) -> Answer | None:
        """Forward to a replica. Raises NoReplicaError if none answers, LateError if it takes too long."""
        waiting: bytes | None = body

        async def receive() -> Message:
            nonlocal waiting
            if waiting is not None:
                part, waiting = waiting, None
                return {"type": "http.request", "body": part, "more_body": False}
            while not connection.gone:
                await connection.read()
            return {"type": "http.disconnect"}

        async def take(message: Message) -> None:
            try:
                await collected(message)
            except SlowReaderError:
                connection.gone = True  # an incomplete answer closes the connection
                limit.reschedule(0)  # and cancels the request to the replica

        stream = Stream(connection.send, self._settings.min_rate, lambda: self._transfers.answer(client))
        collected, own = Collected(stream), {**scope, "headers": _passed(scope, len(body))}
        self._forwarded += 1
        try:
            async with asyncio.timeout(seconds) as limit:
                await self._app(own, receive, take)
        except TimeoutError:
            pass
        except Exception as error:
            _log.warning("no answer from a replica: %s", error)
        finally:
            self._forwarded -= 1
        answer = collected.answer()
        if answer is not None:
            return answer
        failed: Exception = NoReplicaError("the server is restarting what restores images", _RETRY_S)
        if limit.expired() and body:
            failed = LateError(f"not done after {seconds:g} s; send a smaller image or try again later")
        if not collected.streams:
            raise failed
        if not connection.gone:
            with suppress(SlowReaderError):
                await stream.close(b"" if collected.whole else error_event(status_of(failed), str(failed)))
        return None

    async def _deliver(self, answer: Answer, connection: Connection) -> None:
        """Send an answer, if it is read fast enough; then read the rest of the request, within limits."""
        headers = [(name, value) for name, value in answer.headers if name.lower() != b"content-length"]
        headers.append((b"content-length", str(len(answer.body)).encode()))
        if connection.unread:
            headers.append((b"connection", b"close"))
        pace = Pace(self._settings.min_rate)
        try:
            message = {"type": "http.response.start", "status": answer.status, "headers": headers}
            await send_paced(connection.send, message, pace)
            await send_parts(connection.send, answer.body, pace)
        except SlowReaderError:
            return  # an incomplete answer closes the connection
        if connection.unread:
            await self._linger(connection)
        await connection.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _linger(self, connection: Connection) -> None:
        left = 8 * int(self._settings.max_upload)
        try:
            async with asyncio.timeout(_LINGER_S):
                while connection.unread and left > 0:
                    async with asyncio.timeout(_LINGER_IDLE_S):
                        left -= len(await connection.read())
        except TimeoutError:
            pass

    def _too_large(self) -> TooLargeError:
        size = self._settings.max_upload.human_readable()
        return TooLargeError(f"the request is larger than {size}, the limit of this server")

    def _too_slow(self) -> SlowError:
        total, rate = self._settings.upload_timeout, self._settings.min_rate.human_readable()
        return SlowError(f"the request did not arrive within {total:g} s, at {rate} a second or more")


def _passed(scope: Scope, length: int) -> list[tuple[bytes, bytes]]:
    headers = [(name, value) for name, value in scope["headers"] if name in _PASSED]
    headers += [(n, v) for n, v in scope["headers"] if n == _REQUEST_ID and _HARMLESS.fullmatch(v)][:1]
    return [*headers, (b"content-length", str(length).encode())]


def _error(status: int, text: str, headers: list[tuple[bytes, bytes]]) -> Answer:
    return Answer(status, [(b"content-type", b"application/json"), *headers], error_body(text))
