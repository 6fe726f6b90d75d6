"""A tracking server that is unavailable, of another version, or cannot keep files is reported in one line."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlflow
import pytest

from kernels_bank.runtime.errors import BadRequestError
from pipeline.tracking import health


class Pretender(BaseHTTPRequestHandler):
    """Answers as the test wants: path prefix -> (status, text)."""

    answers: dict[str, tuple[int, str]]
    kept: bytes

    def answer(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        if self.command == "PUT":
            type(self).kept = body
        status, text = next((a for p, a in self.answers.items() if self.path.startswith(p)), (200, "{}"))
        out = self.kept if "artifacts" in self.path and self.command == "GET" and status == 200 else text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)

    do_GET = do_PUT = do_DELETE = do_POST = answer  # noqa: N815 - the base class's names

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def pretend() -> Iterator[Callable[[dict[str, tuple[int, str]]], str]]:
    servers = []

    def start(answers: dict[str, tuple[int, str]]) -> str:
        handler = type("Handler", (Pretender,), {"answers": {"/version": (200, mlflow.__version__)} | answers})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_good_server(pretend):
    uri = pretend({})
    assert health.check_store(uri) == f"mlflow {mlflow.__version__}, schema current, files come back"
    assert health.healthy(uri)


def test_a_server_of_another_version(pretend):
    with pytest.raises(BadRequestError, match=r"is mlflow 2\.1\.0, here is .*mlflow db upgrade"):
        health.check_store(pretend({"/version": (200, "2.1.0")}))


def test_a_server_that_asks_for_a_login(pretend):
    with pytest.raises(BadRequestError, match=r"answers 401 .* MLFLOW_TRACKING_USERNAME"):
        health.answer(pretend({"/version": (401, "")}), "/version")


def test_a_server_that_cannot_keep_files(pretend):
    with pytest.raises(BadRequestError, match=r"cannot keep files \(PUT: 400\).*--artifacts-destination"):
        health.check_store(pretend({"/api/2.0/mlflow-artifacts": (400, "")}))


def test_a_server_without_proxied_artifacts(pretend):
    assert "artifacts are not proxied" in health.check_store(pretend({"/api/2.0/mlflow-artifacts": (404, "")}))


def test_a_server_that_is_away(pretend, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert not health.healthy("http://127.0.0.1:9")
    with pytest.raises(BadRequestError, match="does not answer; start it, or correct MLFLOW_TRACKING_URI"):
        health.check_store("http://127.0.0.1:9")
