"""Wrong values of RAY_ADDRESS: one line that says what it is and what is wanted, soon."""

from __future__ import annotations

import contextlib
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest

from kernels_bank.runtime.address import address_here, check_address
from kernels_bank.runtime.errors import BadRequestError


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "https://ray.example.org"])
def test_the_dashboard(address: str):
    with pytest.raises(BadRequestError, match=r"this is the dashboard's address.*RAY_ADDRESS is HOST:PORT of the head"):
        check_address(address)


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "head", "head:", ":6379", "head:ray", "head:0", "head:99999", "grpc://head:6379", "ray://"]
)
def test_no_address_at_all(address: str):
    with pytest.raises(BadRequestError, match="not an address of a Ray cluster; it is HOST:PORT of the head"):
        check_address(address)


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_nobody_listens(form: str):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        with pytest.raises(BadRequestError, match=r"no Ray cluster answers there \(Connection refused\)"):
            check_address(form.format(free.getsockname()[1]))


def test_no_such_host():
    with pytest.raises(BadRequestError, match="no Ray cluster answers there"):
        check_address("no-such-host.invalid:6379")


@contextlib.contextmanager
def web_server() -> Iterator[int]:
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@contextlib.contextmanager
def silent_server() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextlib.contextmanager
def another_grpc_server() -> Iterator[int]:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None)


@pytest.mark.parametrize("server", [web_server, silent_server, another_grpc_server])
def test_somebody_else_listens(server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kernels_bank.runtime.address._PATIENCE_S", 2.0)
    started = time.monotonic()
    with server() as port, pytest.raises(BadRequestError, match="not the head of a Ray cluster"):
        check_address(f"127.0.0.1:{port}")
    assert time.monotonic() - started < 30


@contextlib.contextmanager
def head(answer: grpc.StatusCode) -> Iterator[str]:
    """Answer as the head of a cluster does when it is asked for a sign of life."""

    def alive(_: bytes, context: grpc.ServicerContext) -> bytes:
        if answer is not grpc.StatusCode.OK:
            context.abort(answer, "")
        return b""

    server = grpc.server(futures.ThreadPoolExecutor(1))
    calls = {"CheckAlive": grpc.unary_unary_rpc_method_handler(alive)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("ray.rpc.NodeInfoGcsService", calls)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def rays(monkeypatch: pytest.MonkeyPatch, recorded: str | None, running: set[str]) -> None:
    """Let these be the addresses that Ray knows on this machine."""
    monkeypatch.setattr("ray._private.services.find_bootstrap_address", lambda folder: recorded)
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", lambda: running)


def test_auto_is_the_cluster_that_takes_us(monkeypatch: pytest.MonkeyPatch):
    with head(grpc.StatusCode.UNAUTHENTICATED) as private, head(grpc.StatusCode.OK) as public:
        for recorded, running in ((public, {private, public}), (None, {private, public}), (private, {public})):
            rays(monkeypatch, recorded, running)
            assert address_here() == public


def test_auto_with_the_private_ray_of_another_job_alone(monkeypatch: pytest.MonkeyPatch):
    with head(grpc.StatusCode.UNAUTHENTICATED) as private:
        rays(monkeypatch, None, {private})
        with pytest.raises(BadRequestError, match=rf"^RAY_ADDRESS auto: .*{private}: the cluster asks for its token"):
            address_here()


def test_auto_without_any_cluster(monkeypatch: pytest.MonkeyPatch):
    rays(monkeypatch, None, set())
    with pytest.raises(BadRequestError, match=r"takes this job \(none runs\); start one with `ray start --head`"):
        address_here()
