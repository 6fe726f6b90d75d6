"""Forward HTTP/1.1 to a server on this machine and make faults: for tests of what stands before S3 and MLflow.

In a test, `FaultProxy("http://127.0.0.1:5000")` runs in threads of the test's process; `faults` may be changed at any
time. As a process of its own it is steered by requests:

    python tests/helpers/fault_proxy.py --target http://127.0.0.1:5000 --port 5001 --seed 7
    curl -X PUT http://127.0.0.1:5001/-/faults -d '[{"kind": "cut", "share": 0.4, "methods": "GET"}]'
    curl http://127.0.0.1:5001/-/counts
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import http.client
import json
import random
import re
import select
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, get_args
from urllib.parse import urlsplit

Kind = Literal[
    "cut", "stall", "short", "flip", "flip-request", "cut-request", "status", "delay", "hold", "reset", "shut"
]
_CONTROL = "/-/"
_HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
_CODES = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}  # as S3 names them


@dataclasses.dataclass(frozen=True)
class Fault:
    """One way to go wrong, and which requests it meets.

    - `cut`: the body ends early and the connection is closed; Content-Length promises the whole.
    - `stall`: the body ends early and nothing more comes for `seconds`; Content-Length promises the whole.
    - `short`: the body ends early and Content-Length agrees: only a checksum can tell.
    - `flip`: one bit of the body is another.
    - `flip-request`, `cut-request`: the same of the request's body, on its way to the server.
    - `status`: the answer is `status`; the server is not asked.
    - `delay`: the request waits for `seconds`; faults further down the list still apply.
    - `hold`: the request waits until other faults are set, and goes on then; of a client that has gone it goes nowhere.
    - `reset`: the connection is closed without an answer; the server is not asked.
    - `shut`: the proxy shuts itself, as `FaultProxy.shut` does; the server is not asked.
    """

    kind: Kind
    share: float = 1.0  # of the requests that match
    methods: str = ""  # "GET,HEAD"; empty: all
    path: str = ""  # a regular expression, searched for in path and query
    body: str = ""  # the same, searched for in the request's body
    status: int = 503
    seconds: float = 1.0
    times: int | None = None  # so often at most; None: without end

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"unknown fault '{self.kind}'; known are {', '.join(get_args(Kind))}")

    def matches(self, method: str, path: str, body: bytes) -> bool:
        """Whether a request is one of those that it may meet."""
        if self.methods and method not in self.methods.split(","):
            return False
        return re.search(self.path, path) is not None and re.search(self.body.encode(), body) is not None


class FaultProxy:
    """A proxy in threads of this process. A context manager; it is open from the start."""

    def __init__(self, target: str, faults: list[Fault] | None = None, *, seed: int = 0, port: int = 0) -> None:
        self.target = urlsplit(target).netloc or target
        self.counts: Counter[str] = Counter()  # "GET", "PUT", ... of all requests, and each kind of fault that was made
        self._faults, self._made = faults or [], Counter[Fault]()
        self._random, self._lock = random.Random(seed), threading.RLock()
        self._connections: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self.port = port
        self.open()

    @property
    def url(self) -> str:
        """The address that stands for the server's."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def faults(self) -> list[Fault]:
        """The faults that are made, tried in this order."""
        return self._faults

    @faults.setter
    def faults(self, faults: list[Fault]) -> None:
        with self._lock:
            self._faults, self._made = faults, Counter()

    @property
    def is_open(self) -> bool:
        """Whether anything listens."""
        return self._server is not None

    def open(self) -> None:
        """Listen, on the same port each time."""
        with self._lock:
            if self._server is not None:
                return
            proxy = self

            class Handler(_Handler):
                """Knows its proxy."""

            Handler.proxy = proxy
            self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
            self.port = self._server.server_port
            threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def shut(self) -> None:
        """Cut every connection and refuse new ones, until `open`."""
        with self._lock:
            server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        server.server_close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.shut()

    def draw(self, method: str, path: str, body: bytes) -> Iterator[Fault]:
        """Yield the faults that meet a request: delays, and at most one of the other kinds."""
        with self._lock:
            self.counts[method] += 1
            drawn = []
            for fault in self._faults:
                used_up = fault.times is not None and self._made[fault] >= fault.times
                if used_up or not fault.matches(method, path, body) or self._random.random() >= fault.share:
                    continue
                self._made[fault] += 1
                self.counts[fault.kind] += 1
                drawn.append(fault)
                if fault.kind != "delay":
                    break
        yield from drawn

    def damage(self, kind: str, body: bytes) -> bytes:
        """Return the body as `kind` leaves it."""
        with self._lock:
            at = self._random.randrange(len(body)) if body else 0
            bit = 1 << self._random.randrange(8)
        if not body:
            return body
        if kind.startswith("flip"):
            return body[:at] + bytes([body[at] ^ bit]) + body[at + 1 :]
        return body[:at]

    @contextlib.contextmanager
    def connected(self, connection: socket.socket) -> Iterator[None]:
        """Know a client's connection while the block runs, so that `shut` can cut it."""
        with self._lock:
            self._connections.add(connection)
        try:
            yield
        finally:
            with self._lock:
                self._connections.discard(connection)


class _Handler(BaseHTTPRequestHandler):
    """One client's connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and a small body in one packet
    proxy: FaultProxy

    def log_message(self, *_: object) -> None:
        """Stay silent."""

    def handle(self) -> None:
        """Serve the connection; a client that has gone is no news."""
        with self.proxy.connected(self.connection), contextlib.suppress(OSError):
            super().handle()

    def handle_expect_100(self) -> bool:
        """Ask for the body at once."""
        super().handle_expect_100()
        self.wfile.flush()
        return True

    def finish(self) -> None:
        """Close it, whether or not the client is still there."""
        with contextlib.suppress(OSError):
            super().finish()

    def _forward(self) -> None:
        body = self._request_body()
        if self.path.startswith(_CONTROL):
            self._steer(body)
            return
        fault: Fault | None = None
        for drawn in self.proxy.draw(self.command, self.path, body):
            if drawn.kind == "delay":
                time.sleep(drawn.seconds)
            else:
                fault = drawn
        kind = fault.kind if fault else None
        if kind == "shut":
            self.proxy.shut()
        if kind in {"shut", "reset"} or (kind == "hold" and not self._let_go(fault)):
            self.close_connection = True
        elif fault and kind == "status":
            self._answer(fault.status, [("Content-Type", "application/xml")], self._error(fault.status))
        else:
            self._pass_on(body, fault)

    def _let_go(self, hold: Fault | None) -> bool:
        """Wait until a hold is no longer among the faults; return whether the client is still there."""
        while hold in self.proxy.faults:
            readable, _, _ = select.select([self.connection], [], [], 0.05)
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                return False
        return True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_PATCH = do_OPTIONS = _forward  # noqa: N815 - looked up by name

    def _request_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(parts)

    def _pass_on(self, body: bytes, fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        dropped = _HOP_BY_HOP | {"expect", "content-length"}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        if body or self.command in {"PUT", "POST", "PATCH"}:
            headers["Content-Length"] = str(len(body))  # the whole, also where the body is cut
        if kind.endswith("-request"):
            body = self.proxy.damage(kind, body)
        upstream = http.client.HTTPConnection(self.proxy.target, timeout=600)
        try:
            upstream.request(self.command, self.path, headers=headers)
            upstream.send(body)
            if kind == "cut-request":
                upstream.sock.shutdown(socket.SHUT_WR)
            answer = upstream.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):  # the server is away, or gave up in the middle
            self.close_connection = True
            return
        finally:
            upstream.close()
        self._answer(answer.status, answer.getheaders(), content, fault)

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, fault: Fault | None = None) -> None:
        kind = fault.kind if fault else ""
        sent = self.proxy.damage(kind, body) if kind in {"cut", "stall", "short", "flip"} else body
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP and (name.lower() != "content-length" or self.command == "HEAD"):
                self.send_header(name, value)
        if self.command != "HEAD" and status not in {204, 304}:
            self.send_header("Content-Length", str(len(sent if kind == "short" else body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)
        self.wfile.flush()
        if fault and kind == "stall":
            time.sleep(fault.seconds)
        if kind in {"cut", "stall"}:
            self.close_connection = True

    def _error(self, status: int) -> bytes:
        code = _CODES.get(status, "InternalError")
        return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>made by a test</Message></Error>".encode()

    def _steer(self, body: bytes) -> None:
        """Answer a control request: PUT faults, GET counts, POST shut (for `seconds`)."""
        status, answer = 200, b"{}"
        match (self.command, self.path.removeprefix(_CONTROL)):
            case ("PUT", "faults"):
                try:
                    self.proxy.faults = [Fault(**one) for one in json.loads(body)]
                except (TypeError, ValueError) as error:
                    status, answer = 400, str(error).encode()
            case ("GET", "counts"):
                answer = json.dumps(self.proxy.counts).encode()
            case ("POST", "shut"):
                seconds = float(json.loads(body)["seconds"])
                threading.Timer(0.05, self.proxy.shut).start()
                threading.Timer(0.05 + seconds, self.proxy.open).start()
            case _:
                status, answer = 404, b"PUT faults, GET counts or POST shut"
        self._answer(status, [], answer)


def main() -> None:
    """Run a proxy until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True, help="http://HOST:PORT of the server")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with FaultProxy(arguments.target, seed=arguments.seed, port=arguments.port) as proxy:
        print(proxy.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
    sys.exit(0)


if __name__ == "__main__":
    main()
