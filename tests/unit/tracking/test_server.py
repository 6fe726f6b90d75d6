"""A tracking server that accepts connections but is silent is reported soon, in one line."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from kernels_bank.runtime.errors import BadRequestError
from pipeline.tracking import server
from pipeline.tracking.health import healthy
from pipeline.tracking.store import client


@pytest.fixture
def silent() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://name:secret@127.0.0.1:{listening.getsockname()[1]}"


class Answers(BaseHTTPRequestHandler):
    """Answer each request with a status that the server holds, and count them."""

    def do_GET(self) -> None:
        self.server.asked += 1  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def answering() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Answers) as listening:
        listening.asked, listening.status = 0, 200  # type: ignore[attr-defined]
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield listening
        listening.shutdown()


def test_a_silent_server_is_one_line_without_its_password(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_PATIENCE_S", 0.2)
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
    with pytest.raises(BadRequestError, match=r"said nothing for 0.2 s; restart it") as refused:
        client(silent)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("status", [200, 401, 404, 500])
def test_a_server_that_says_anything_is_asked_once(answering: HTTPServer, status: int) -> None:
    answering.status = status  # type: ignore[attr-defined]
    uri = f"http://127.0.0.1:{answering.server_port}"
    assert healthy(uri) == (status in (200, 401))
    server.expect_answer(uri)
    server.expect_answer(uri)
    assert answering.asked == 2  # type: ignore[attr-defined]


def test_a_server_that_refuses_passes_since_it_may_be_starting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    server.expect_answer(f"http://127.0.0.1:{port}")
    assert not healthy(f"http://127.0.0.1:{port}")
