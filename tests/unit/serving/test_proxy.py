"""Ray Serve's HTTP server with the gate in it: every request has an answer, whatever it wants to become."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
import uvicorn.config

from kernels_bank.runtime.errors import BadRequestError
from pipeline.serving import proxy, serve
from pipeline.serving.settings import ServeSettings

_UPGRADE = "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


async def echo(scope: dict[str, Any], receive: Any, send: Any) -> None:
    body = scope["method"].encode() + b" " + (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Start the server as Serve's proxy does: the middlewares first, then uvicorn with its defaults."""
    for name, value in proxy.environment(ServeSettings()).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(uvicorn.config.WS_PROTOCOLS, "auto", uvicorn.config.WS_PROTOCOLS["auto"])
    log = logging.getLogger("uvicorn.error")
    level, app = log.level, echo
    for middleware in reversed(proxy.middlewares()):
        app = middleware.cls(app, *middleware.args, **middleware.kwargs)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level=None, log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            deadline = time.monotonic() + 20
            while not server.started:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            log.setLevel(level)


def answer_to(port: int, method: str, target: str, upgrade: str, body: str = "") -> bytes:
    request = (
        f"{method} {target} HTTP/1.1\r\nHost: x\r\n{_UPGRADE}Upgrade: {upgrade}\r\nContent-Length: {len(body)}\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"{request}\r\n{body}".encode())
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(4096), b""))


@pytest.mark.parametrize("upgrade", ["websocket", "WebSocket", "h2c", "TLS/1.0"])
def test_a_request_to_upgrade_is_answered_as_if_it_were_none(port, upgrade):
    for method, target in (("OPTIONS", "/restore"), ("HEAD", "/"), ("GET", "/")):
        assert answer_to(port, method, target, upgrade).startswith(b"HTTP/1.1 200 "), method
    refused = answer_to(port, "POST", "/restore", upgrade, "image")
    assert refused.startswith(b"HTTP/1.1 400 ")
    assert b"without the header Upgrade" in refused


@pytest.mark.parametrize("host", ["a..b", "a" * 70])
def test_a_host_that_no_name_server_could_know_is_a_line(host: str):
    with pytest.raises(BadRequestError, match=f"^--host {host}: no host is called so; choose another --host$"):
        serve.planned(ServeSettings(host=host))
