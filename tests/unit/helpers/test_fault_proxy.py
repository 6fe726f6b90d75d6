"""The proxy makes the faults that it is asked for, and no others: what tests of storage and tracking stand on."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from tests.helpers.fault_proxy import Fault, FaultProxy

CONTENT = bytes(range(256)) * 40


class Echo(BaseHTTPRequestHandler):
    """Gives CONTENT, and a request's body back as far as it came."""

    protocol_version = "HTTP/1.1"
    paths: ClassVar[list[str]] = []

    def answer(self) -> None:
        self.paths.append(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        out = body if self.command == "PUT" else CONTENT
        self.send_response(200)
        self.send_header("Content-Length", str(len(out)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(out)

    do_GET = do_PUT = do_HEAD = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    made = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=made.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()


@pytest.fixture
def proxy(server: str) -> Iterator[FaultProxy]:
    with FaultProxy(server) as made:
        yield made


def get(proxy: FaultProxy, path: str = "/x") -> bytes:
    with urllib.request.urlopen(proxy.url + path, timeout=10) as answer:
        return answer.read()


def put(proxy: FaultProxy, body: bytes) -> bytes:
    request = urllib.request.Request(f"{proxy.url}/x", data=body, method="PUT")
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read()


def test_without_faults_all_goes_through(proxy: FaultProxy):
    assert get(proxy) == CONTENT
    assert put(proxy, b"abc") == b"abc"
    assert urllib.request.urlopen(urllib.request.Request(f"{proxy.url}/x", method="HEAD")).read() == b""
    assert proxy.counts == {"GET": 1, "PUT": 1, "HEAD": 1}


@pytest.mark.parametrize("kind", ["cut", "stall"])
def test_a_cut_body_is_promised_whole(proxy: FaultProxy, kind: str):
    proxy.faults = [Fault(kind, seconds=0.1)]
    with pytest.raises(http.client.IncompleteRead) as caught:
        get(proxy)
    assert CONTENT.startswith(caught.value.partial)
    assert len(caught.value.partial) + caught.value.expected == len(CONTENT)


def test_a_short_body_and_a_flipped_bit_look_right(proxy: FaultProxy):
    proxy.faults = [Fault("short", times=1), Fault("flip")]
    assert (short := get(proxy)) != CONTENT
    assert CONTENT.startswith(short)
    flipped = get(proxy)
    assert sum((a ^ b).bit_count() for a, b in zip(flipped, CONTENT, strict=True)) == 1


def test_errors_and_closed_connections(proxy: FaultProxy):
    proxy.faults = [Fault("status", status=403, times=1), Fault("reset")]
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(proxy)
    assert caught.value.code == 403
    assert b"AccessDenied" in caught.value.read()
    with pytest.raises(http.client.RemoteDisconnected):
        get(proxy)


def test_requests_are_damaged_on_their_way(proxy: FaultProxy):
    proxy.faults = [Fault("flip-request", times=1), Fault("cut-request")]
    assert put(proxy, CONTENT) != CONTENT
    assert CONTENT.startswith(cut := put(proxy, CONTENT))
    assert len(cut) < len(CONTENT)


def test_a_fault_meets_what_it_names_and_its_share(proxy: FaultProxy):
    proxy.faults = [Fault("flip", share=0.5, methods="GET", path=r"\.tar$")]
    assert get(proxy, "/y") == CONTENT
    assert put(proxy, CONTENT) == CONTENT
    wrong = sum(get(proxy, "/a.tar") != CONTENT for _ in range(40))
    assert wrong == proxy.counts["flip"]
    assert 5 < wrong < 35


def test_a_held_request_goes_on_when_it_may_and_nowhere_without_its_client(proxy: FaultProxy):
    proxy.faults = [Fault("hold", methods="PUT", body="wait")]
    assert put(proxy, b"go") == b"go"
    with ThreadPoolExecutor() as pool:
        held = pool.submit(put, proxy, b"wait for me")
        with pytest.raises(TimeoutError):
            held.result(timeout=0.3)
        proxy.faults = []
        assert held.result(timeout=10) == b"wait for me"

    proxy.faults = [Fault("hold")]
    gone = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    gone.request("GET", "/gone")
    while proxy.counts["hold"] < 2:
        time.sleep(0.01)
    gone.close()
    while proxy._connections:
        time.sleep(0.01)
    proxy.faults = []
    assert get(proxy) == CONTENT
    assert "/gone" not in Echo.paths


def test_shut_and_open_again(proxy: FaultProxy):
    open_connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
    open_connection.request("GET", "/")
    assert open_connection.getresponse().read() == CONTENT
    proxy.faults = [Fault("shut", path="poison", times=1)]
    with pytest.raises(OSError, match=r"without response|reset"):
        get(proxy, "/poison")
    assert not proxy.is_open
    assert open_connection.sock.recv(1) == b""
    open_connection.close()
    with pytest.raises(OSError, match="refused"):
        get(proxy)
    proxy.open()
    assert get(proxy) == CONTENT


def test_a_process_of_its_own_is_steered_by_requests(proxy: FaultProxy):
    def steer(method: str, path: str, value: object = None) -> dict:
        body = json.dumps(value).encode() if value is not None else None
        request = urllib.request.Request(f"{proxy.url}/-/{path}", data=body, method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    steer("PUT", "faults", [{"kind": "status", "status": 500}])
    with pytest.raises(urllib.error.HTTPError, match="500"):
        get(proxy)
    assert steer("GET", "counts") == {"GET": 1, "status": 1}
    with pytest.raises(urllib.error.HTTPError, match="400"):
        steer("PUT", "faults", [{"kind": "nothing"}])
