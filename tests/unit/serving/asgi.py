"""One request to an ASGI application, without a socket: what is sent and when is the test's to say."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

from pipeline.serving.app import build_app
from pipeline.serving.gate import Gate
from pipeline.serving.model import LiveModel
from pipeline.serving.settings import ServeSettings


class Reply(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The one line of a refusal: JSON with that key alone."""
        (only,) = self.json.items()
        assert only[0] == "error"
        assert "\n" not in only[1]
        assert "Traceback" not in only[1]
        return only[1]


def ask(
    live: LiveModel,
    method: str,
    target: str,
    body: bytes | AsyncIterator[bytes] = b"",
    headers: Mapping[str, str] | None = None,
    **settings: object,
) -> Reply:
    """`call` on a fresh app that serves `live` under these settings."""
    return asyncio.run(call(gated(live, **settings), method, target, body, headers))


def gated(live: LiveModel, **settings: object) -> Gate:
    """A fresh app that serves `live`, behind its gate, as Ray Serve's proxy runs it.

    A replica's limit is on its whole process, and here that is the process of all tests before: it has none.
    """
    chosen = ServeSettings(**{"max_memory": 2**40, **settings})
    return Gate(build_app(chosen, live), chosen)


def form(image: bytes, fields: Mapping[str, str] | None = None, name: str = "p.png") -> tuple[bytes, dict[str, str]]:
    """Body and headers of an upload as browsers send it."""
    parts = [f'--b\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in (fields or {}).items()]
    parts.append(f'--b\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n')
    return "".join(parts).encode() + image + b"\r\n--b--\r\n", {"content-type": "multipart/form-data; boundary=b"}


async def call(
    app: Any,
    method: str,
    target: str,
    body: bytes | AsyncIterator[bytes] = b"",
    headers: Mapping[str, str] | None = None,
    client: str = "test",
) -> Reply:
    """Bytes are sent at once, with their length; an iterator in chunks, without one."""
    path, _, query = target.partition("?")
    given = dict(headers or {})
    if isinstance(body, bytes):
        given.setdefault("content-length", str(len(body)))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()],
        "server": ("test", 80),
        "client": (client, 1),
    }
    messages = _messages(body)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return await anext(messages)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    try:
        await app(scope, receive, send)
    except Exception:
        # An unexpected error goes on to the server, which logs it, after the answer was sent.
        if not sent:
            raise
    answer = {name.decode(): value.decode("latin-1") for name, value in sent[0]["headers"]}
    return Reply(sent[0]["status"], answer, b"".join(message.get("body", b"") for message in sent[1:]))


async def _messages(body: bytes | AsyncIterator[bytes]) -> AsyncIterator[dict[str, Any]]:
    if isinstance(body, bytes):
        yield {"type": "http.request", "body": body, "more_body": False}
    else:
        async for chunk in body:
            yield {"type": "http.request", "body": chunk, "more_body": True}
        yield {"type": "http.request", "body": b"", "more_body": False}
    while True:
        yield {"type": "http.disconnect"}
