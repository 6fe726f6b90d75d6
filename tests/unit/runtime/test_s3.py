"""Requests to S3 that fail: one line with the place, the endpoint and the cause; soon, where nobody ever answered."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from kernels_bank.runtime import folders, s3, storage
from kernels_bank.runtime.errors import ArtefactError, BadRequestError, JobFailedError
from kernels_bank.runtime.s3 import S3Error, S3RefusedError


class Server(BaseHTTPRequestHandler):
    """An S3 server that answers each request with `status` and an error of S3's in the body."""

    status, code, asked = 503, "SlowDown", 0

    def answer(self) -> None:
        type(self).asked += 1
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = f"<Error><Code>{self.code}</Code><Message>said so</Message></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_HEAD = answer  # noqa: N815

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has asked nothing yet, and does not wait long."""
    monkeypatch.setattr(s3, "_answered", False)
    monkeypatch.setattr(s3, "_hurry", False)
    monkeypatch.setattr(s3, "LONGEST_PAUSE_S", 0.01)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    handler = type("Handler", (Server,), {})
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listening.server_port}")
    yield handler
    listening.shutdown()
    listening.server_close()


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("tries", [1, 2])
def test_a_filesystem_tries_as_often_in_another_process(server: type[Server], tries: int, copied: bool):
    filesystem, path = storage.resolve("s3://bucket/key", tries)
    if copied:
        filesystem = pickle.loads(pickle.dumps(filesystem))
    with pytest.raises(
        OSError, match=r"s3://bucket/key \(endpoint http://127.0.0.1:\d+\): the server answers SlowDown"
    ):
        filesystem.open_input_stream(path)
    assert server.asked == tries


@pytest.mark.parametrize(
    ("status", "code", "line"),
    [
        (403, "AccessDenied", r"refused, AccessDenied \(said so\)$"),
        (403, "InvalidAccessKeyId", r"refused, InvalidAccessKeyId \(said so\)$"),
        (403, "SignatureDoesNotMatch", r"refused, SignatureDoesNotMatch"),
        (404, "NoSuchBucket", r"there is no bucket 'b'$"),
        (400, "ExpiredToken", "refused, ExpiredToken"),
    ],
)
def test_what_is_refused_is_asked_once(server: type[Server], status: int, code: str, line: str):
    server.status, server.code = status, code
    with pytest.raises(BadRequestError, match=line) as caught:
        folders.list_files("s3://b/x")
    assert str(caught.value).startswith("s3://b/x (endpoint http://127.0.0.1:")
    assert server.asked == 1
    for ask in (storage.exists, storage.is_file, storage.read_bytes, storage.sha256_of):
        with pytest.raises(S3RefusedError, match=line):
            ask("s3://b/x")


def test_a_missing_file_is_an_artefact_that_is_missing(server: type[Server]):
    server.status, server.code = 404, "NoSuchKey"
    with pytest.raises(ArtefactError, match="s3://b/x: no such file"):
        storage.read_bytes("s3://b/x")


def test_without_credentials_the_line_says_so(server: type[Server], monkeypatch: pytest.MonkeyPatch, tmp_path):
    server.status, server.code = 403, "AccessDenied"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(BadRequestError, match="no credentials were found, set AWS_ACCESS_KEY_ID"):
        storage.exists("s3://b")


@pytest.mark.parametrize(
    ("endpoint", "error", "line"),
    [
        ("http://127.0.0.1:9", JobFailedError, r"\(endpoint http://127.0.0.1:9\): no answer \(.*refused"),
        ("http://nowhere.invalid:9000", BadRequestError, "the server's name is not known"),
        ("127.0.0.1:9000", BadRequestError, r"\(endpoint 127.0.0.1:9000\): Invalid endpoint"),
        ("minio:9000", BadRequestError, r"\(endpoint minio:9000\): "),
    ],
)
def test_an_endpoint_that_never_answered_is_given_up_soon(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, error: type[Exception], line: str
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setattr(s3, "LONGEST_PAUSE_S", 20.0)
    s3.expect_answer_soon()
    started = time.monotonic()
    with pytest.raises(error, match=line):
        storage.exists("s3://b/x")
    assert time.monotonic() - started < 30  # with all tries 45


def test_https_to_a_server_that_speaks_http(server: type[Server], monkeypatch: pytest.MonkeyPatch):
    import os

    monkeypatch.setenv("AWS_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"].replace("http:", "https:"))
    with pytest.raises(BadRequestError, match="no TLS connection"):
        storage.exists("s3://b/x")


def test_a_server_that_has_answered_is_waited_for(server: type[Server], monkeypatch: pytest.MonkeyPatch):
    s3.expect_answer_soon()
    with pytest.raises(S3Error):
        storage.read_bytes("s3://b/x")
    assert server.asked == s3.TRIES
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    asked = []
    monkeypatch.setattr("time.sleep", lambda _: asked.append(1))
    with pytest.raises(S3Error):
        storage.read_bytes("s3://b/x")
    assert len(asked) == s3.TRIES - 1


@pytest.mark.parametrize("kind", ["page", "redirect", "nothing"])
def test_an_endpoint_that_is_no_s3_server_is_said_in_a_line(server: type[Server], kind: str):
    """A console's port, a proxy that sends one elsewhere, a server that knows no such path."""

    def answer(handler: Server) -> None:
        body = b"<!DOCTYPE html><html><body>Welcome</body></html>"
        handler.send_response({"page": 200, "redirect": 301, "nothing": 404}[kind])
        if kind == "redirect":
            handler.send_header("Location", "http://127.0.0.1:9/elsewhere")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    server.do_GET = server.do_HEAD = answer  # type: ignore[method-assign,assignment]
    for ask in (lambda: storage.exists("s3://b/x"), lambda: folders.list_files("s3://b/x", recursive=True)):
        with pytest.raises((S3RefusedError, S3Error), match=r"s3://b/x \(endpoint http://127"):
            ask()


def test_uris_that_name_nothing_are_refused():
    for uri in ("s3://", "s3:///x"):
        with pytest.raises(BadRequestError, match="names no bucket"):
            storage.exists(uri)
    with pytest.raises(BadRequestError, match="Invalid bucket name"):
        storage.exists("s3://a b/x")
    assert s3.bucket_and_key("s3://b//d/") == ("b", "/d")
    with pytest.raises(BadRequestError, match="empty part"):
        storage.resolve("s3://b/a//c")
