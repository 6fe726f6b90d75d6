"""No way around a limit, to a file or into a pickle, whatever is sent."""

from __future__ import annotations

import asyncio
import io
import pickle
import re
import struct
import threading
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.images.header import read_header
from pipeline.images.parts import Parts
from pipeline.inference.memory import in_use
from pipeline.serving import app as app_module
from tests.unit.serving.asgi import Reply, ask, call, form, gated


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG header over a handful of compressed bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )


@pytest.fixture
def never_decoded(monkeypatch):
    def fail(_: bytes) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("pipeline.serving.answer.decode_photograph", fail)


def test_a_flood_of_fields_is_refused(live, png):
    reply = ask(live, "POST", "/restore", *form(png, {f"f{i}": "" for i in range(1000)}))
    assert (reply.status, "fields" in reply.error) == (400, True)


def test_a_broken_form_writes_no_line_into_the_log(live, caplog):
    kind = {"Content-Type": "multipart/form-data; boundary=B"}
    reply = ask(live, "POST", "/restore", b"--C\r\nno form", kind)
    assert (reply.status, "not a form" in reply.error, caplog.records) == (400, True, [])


class Bomb:
    """Whoever unpickles it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.trace,)


def test_nothing_is_unpickled_whatever_it_is_called(live, tmp_path):
    trace = tmp_path / "was-unpickled"
    payload = pickle.dumps(Bomb(trace))
    values = io.BytesIO()
    np.save(values, np.array([Bomb(trace)], dtype=object), allow_pickle=True)
    for body in (payload, values.getvalue()):
        for kind in ("application/octet-stream", "application/python-pickle", "application/x-numpy", "image/png"):
            assert ask(live, "POST", "/restore", body, {"content-type": kind}).status == 400
        assert ask(live, "POST", "/restore", *form(body, name="x.pkl")).status == 400
    assert not trace.exists()


@pytest.mark.parametrize(
    "path",
    ["/../../etc/passwd", "/..%2f..%2fetc/passwd", "//etc/passwd", "/page/restore.js", "/static/../app.py", "/x"],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_there_are_no_files_to_be_had(live, path, method):
    reply = ask(live, method, path)
    assert reply.status == 404
    assert b"root:" not in reply.body
    assert "Not Found" in reply.error


def test_the_name_of_an_uploaded_file_is_no_path(live, png, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reply = ask(live, "POST", "/restore", *form(png, name=f"../../..{tmp_path}/escaped.png"))
    assert reply.status == 200
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.usefixtures("never_decoded")
@pytest.mark.parametrize(("width", "height"), [(5000, 4000), (60000, 60000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_by_the_header(live, width, height):
    before = in_use(live.current.restorer.device)
    reply = ask(live, "POST", "/restore", png_that_claims(width, height))
    assert reply.status in {400, 413}, reply.body
    assert re.search(r"20\.0 megapixels; this server takes 4|pixels|not a readable", reply.error)
    assert in_use(live.current.restorer.device) - before < 20 * 2**20


def test_headers_are_read_beside_the_loop_that_serves_all(live, png, monkeypatch):
    readers = []

    def read(data: bytes) -> Parts:
        readers.append(threading.get_ident())
        return read_header(data)

    monkeypatch.setattr("pipeline.serving.request.read_header", read)
    assert ask(live, "POST", "/restore?scale=99", png).status == 400
    assert len(readers) == 1
    assert readers[0] != threading.get_ident()


def test_pixels_that_the_header_hides_are_not_unpacked(live):
    """60 MB of zeros behind the header of a 30 x 30 image."""
    honest = png_that_claims(30, 30)
    packed = zlib.compress(bytes(60 * 2**20))
    chunk = struct.pack(">I", len(packed)) + b"IDAT" + packed + struct.pack(">I", zlib.crc32(b"IDAT" + packed))
    before = in_use(live.current.restorer.device)
    ask(live, "POST", "/restore", honest[:33] + chunk + honest[-12:])
    assert in_use(live.current.restorer.device) - before < 40 * 2**20


@pytest.mark.usefixtures("never_decoded")
def test_too_many_bytes_are_refused_by_their_announcement_and_by_count(live):
    announced = ask(live, "POST", "/restore", b"", {"content-length": str(2**40)}, max_upload=1000)
    assert (announced.status, "larger than 1000" in announced.error) == (413, True)

    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 100
            yield bytes(100)

    for headers in ({}, {"content-type": "multipart/form-data; boundary=b"}, {"content-length": "5"}):
        taken = 0
        reply = ask(live, "POST", "/restore", endless(), headers, max_upload=1000)
        assert reply.status in {400, 413}
        assert reply.error
        assert taken <= 9200, "it went on reading for ever"


def test_a_slow_sender_is_cut_off(live):
    async def slow() -> AsyncIterator[bytes]:
        yield b"\x89PNG"
        await asyncio.sleep(30)

    reply = ask(live, "POST", "/restore", slow(), upload_timeout=0.05)
    assert (reply.status, "did not arrive" in reply.error) == (408, True)


def test_a_full_queue_says_when_to_come_again_and_a_late_answer_is_none(live, png, monkeypatch):
    gate = threading.Event()

    def slow(*_: object) -> None:
        gate.wait(20)
        raise MemoryError

    monkeypatch.setattr(app_module, "carry_out", slow)

    async def scenario() -> list[Reply]:
        app = gated(live, queue=1, timeout=0.4)
        replies = await asyncio.gather(*(call(app, "POST", "/restore", png) for _ in range(4)))
        health = (await call(app, "GET", "/healthz")).json
        assert health["places"] == {"taken": 1, "most": 2}, "one still runs"
        gate.set()
        return replies

    replies = asyncio.run(scenario())
    assert sorted(reply.status for reply in replies) == [429, 429, 504, 504]
    for reply in replies:
        assert reply.error
        assert (reply.status == 429) == (int(reply.headers.get("retry-after", 0)) >= 1)
