"""What comes in and out over HTTP: the restorer's own pixels, one line for what is wrong, and no way around a limit."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import pickle
import re
import struct
import threading
import zlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.images import encode_png
from pipeline.inference.memory import in_use
from pipeline.inference.photograph import Photograph, decode_photograph, encode_photograph
from pipeline.serving import app as app_module
from pipeline.serving.app import build_app
from pipeline.serving.model import LiveModel
from pipeline.serving.order import Wishes
from pipeline.serving.settings import ServeSettings
from tests.unit.serving.asgi import Reply, call


def ask(
    live: LiveModel,
    method: str,
    target: str,
    body: bytes | AsyncIterator[bytes] = b"",
    headers: Mapping[str, str] | None = None,
    **settings: object,
) -> Reply:
    return asyncio.run(call(build_app(ServeSettings(**settings), live), method, target, body, headers))


def form(image: bytes, fields: Mapping[str, str] | None = None, name: str = "p.png") -> tuple[bytes, dict[str, str]]:
    parts = [f'--b\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in (fields or {}).items()]
    parts.append(f'--b\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n')
    return "".join(parts).encode() + image + b"\r\n--b--\r\n", {"content-type": "multipart/form-data; boundary=b"}


def gif() -> bytes:
    encoded = io.BytesIO()
    Image.new("L", (8, 8)).save(encoded, "GIF")
    return encoded.getvalue()


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


def test_a_body_and_a_form_give_what_the_restorer_gives(live, photo, png):
    expected = live.current.restorer.restore(photo, 2, 0.01)
    for reply in (
        ask(live, "POST", "/restore?sigma=0.01", png),
        ask(live, "POST", "/restore", *form(png, {"sigma": "0.01", "scale": "2"})),
    ):
        assert (reply.status, reply.headers["content-type"]) == (200, "image/png")
        assert np.array_equal(decode_photograph(reply.body).pixels, expected.image)
        kernel = np.load(io.BytesIO(base64.b64decode(reply.headers["x-kernel"])), allow_pickle=False)
        assert np.array_equal(kernel, expected.kernel)
        assert float(reply.headers["x-sigma"]) == 0.01
        assert float(reply.headers["x-residual"]) == expected.residual
        assert int(reply.headers["x-kernel-round"]) == expected.winner
        assert reply.headers["x-weights-sha256"] == live.current.restorer.digest
        assert re.findall(r"(\w+);dur=\d+", reply.headers["server-timing"]) == [
            "decode",
            "estimate",
            "restore",
            "encode",
        ]


@pytest.mark.parametrize("how", [{"headers": {"accept": "application/json"}}, {"target": "/restore?format=json"}])
def test_json_says_the_same(live, photo, png, how):
    found = ask(live, "POST", how.get("target", "/restore"), png, how.get("headers")).json
    expected = live.current.restorer.restore(photo, 2)
    assert np.array_equal(decode_photograph(base64.b64decode(found["image"])).pixels, expected.image)
    assert np.array_equal(np.float32(found["kernel"]), expected.kernel)
    assert (found["sigma"], found["sigma_from"]) == (expected.sigma, "estimated")
    assert (found["width"], found["height"]) == (80, 96)
    drawn = decode_photograph(base64.b64decode(found["kernel_png"])).pixels
    assert np.abs(drawn / 65535 - expected.kernel / expected.kernel.max()).max() < 1e-5
    assert "bicubic" not in found


def test_pictures_for_the_page_are_aligned_with_the_result(live, photo, png):
    found = ask(live, "POST", "/restore?format=json&pictures=true", png).json
    shown = {name: decode_photograph(base64.b64decode(found[name])).pixels for name in ("input", "bicubic", "image")}
    assert np.array_equal(shown["input"], photo)
    # Keep-the-upper-left decimation: every second pixel of an interpolation is the input's own.
    assert np.array_equal(shown["bicubic"][::2, ::2], photo)
    assert shown["bicubic"].shape == shown["image"].shape


def test_depth_alpha_profile_and_orientation_are_kept(live, photo):
    deep = np.dstack([photo.astype(np.uint16) * 257, np.full(photo.shape[:2], 65535, np.uint16)])
    profile = bytes(range(128)) * 2
    reply = ask(live, "POST", "/restore", encode_photograph(Photograph(deep, profile, "png"), 100))
    back = decode_photograph(reply.body)
    assert (back.pixels.dtype, back.pixels.shape, back.icc) == (np.uint16, (96, 80, 4), profile)
    assert (back.pixels[..., 3] == 65535).all()

    lying, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo).save(lying, "JPEG", exif=exif, quality=95)
    assert decode_photograph(ask(live, "POST", "/restore", lying.getvalue()).body).pixels.shape == (80, 96, 3)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("/restore?scale=3", "not made for scale 3"),
        ("/restore?scale=two", "scale: "),
        ("/restore?sigma=nan", "sigma: "),
        ("/restore?sigma=-1", "sigma: "),
        ("/restore?format=pickle", "format: "),
        ("/restore?model=/etc/passwd", "model: unknown parameter; there is scale, sigma"),
    ],
)
def test_wrong_parameters_are_named(live, png, target, message):
    reply = ask(live, "POST", target, png)
    assert reply.status == 400
    assert message in reply.error


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "no image"),
        (b"hello", "not a readable image"),
        (pickle.dumps({"image": 1}), "not a readable image"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '|O'", "not a readable image"),
        (gif(), "GIF is not supported; use PNG, JPEG"),
    ],
)
def test_what_is_no_image_is_refused_in_a_line(live, body, message):
    reply = ask(live, "POST", "/restore", body)
    assert reply.status == 400
    assert message in reply.error


def test_a_cut_off_image_is_refused_in_a_line(live, png):
    reply = ask(live, "POST", "/restore", png[: len(png) // 2])
    assert (reply.status, reply.error) == (400, "damaged pixel data")


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=other"])
def test_a_form_that_is_none_is_refused_in_a_line(live, png, content_type):
    reply = ask(live, "POST", "/restore", form(png)[0], {"content-type": content_type})
    assert reply.status == 400
    assert reply.error


def test_a_flood_of_fields_is_refused(live, png):
    reply = ask(live, "POST", "/restore", *form(png, {f"f{i}": "" for i in range(1000)}))
    assert (reply.status, "fields" in reply.error) == (400, True)


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
        assert taken <= 1100, "it went on reading"


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
        app = build_app(ServeSettings(queue=1, timeout=0.4), live)
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


@pytest.mark.parametrize(("error", "status"), [(MemoryError(), 503), (RuntimeError("secret /path"), 500)])
def test_what_goes_wrong_inside_is_not_told(live, png, monkeypatch, error, status):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(app_module, "carry_out", fail)
    reply = ask(live, "POST", "/restore", png)
    assert reply.status == status
    assert "secret" not in reply.error


def test_health_says_what_is_served(live):
    health = ask(live, "GET", "/healthz", max_pixels=5000).json
    assert health["status"] == "ready"
    assert health["model"] == live.current.about()
    assert health["limits"]["max_pixels"] == 5000
    assert (health["alias"], health["refused"]) == (None, None)


def test_the_description_is_of_what_there_is(live):
    schema = ask(live, "GET", "/openapi.json").json
    assert set(schema["paths"]) == {"/restore", "/healthz"}
    restore = schema["paths"]["/restore"]["post"]
    assert [one["name"] for one in restore["parameters"]] == list(Wishes.model_fields)
    assert {"200", *(str(status) for status in app_module.STATUS.values())} <= set(restore["responses"])
    json.dumps(schema)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_ask_for_nothing_from_elsewhere(live, path):
    reply = ask(live, "GET", path, headers={"host": "example.test"})
    text = reply.body.decode()
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert re.findall(r"""(?:src|href)=["']?(?!data:|docs|openapi\.json|\./)[^"'\s>]+""", text) == []
    assert re.findall(r"https?://(?!example\.test|test)\S+", text) == []


def test_a_host_name_is_not_markup(live):
    reply = ask(live, "GET", "/docs", headers={"host": "<script>alert(1)</script>"})
    assert b"<script>alert" not in reply.body


def test_all_of_it_from_one_encoding(live, photo):
    """A TIFF comes out as a PNG of the same pixels' restoration."""
    tiff = encode_photograph(Photograph(photo, None, "tiff"), 100)
    assert ask(live, "POST", "/restore", tiff).body == ask(live, "POST", "/restore", encode_png(photo)).body
