"""What leaves the server when something is wrong: one line of JSON, and no place of a file or a server."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from pipeline.images import BadImageError
from pipeline.serving import app as app_module
from pipeline.serving import errors
from pipeline.serving.model import LiveModel
from tests.unit.serving.asgi import ask, form

HERE = str(Path(__file__).resolve())
PLACES = [
    HERE,
    f"'{HERE}'",
    f"file://{HERE}",
    f"sqlite:///{HERE}",
    f"sqlite:////{HERE}?x=1",
    "postgresql+psycopg2://mlflow:top/secret@db.internal/mlflow",
    "https://user:top-secret@mlflow.internal:5000/api?token=top-secret",
    "s3://a-bucket/models",
]
SECRET = ["top", ".internal", "a-bucket", "token", str(Path(HERE).parent)]


@pytest.mark.parametrize("place", PLACES)
def test_of_a_place_only_the_last_part_is_told(place):
    text = errors.public_text(f"{place}: is damaged, see\n{place}.")
    assert [part for part in SECRET if part in text] == []
    assert text.count("is damaged, see") == 1


@pytest.mark.parametrize(
    "text",
    ["models:/blind-sr-x2/3 was not made for scale 3; it restores 2, 4", "5000 x 4000 is 20.0 megapixels", "0.5/1 s"],
)
def test_the_rest_is_told_as_it_is(text):
    assert errors.public_text(text) == text


@pytest.mark.parametrize(
    "kind",
    [*(k for k in errors.STATUS), BadRequestError, ArtefactError, OSError, RuntimeError, KeyError, MemoryError],
)
@pytest.mark.parametrize("place", PLACES[:6])
def test_no_kind_of_error_tells_a_place(live, png, monkeypatch, kind, place):
    def fail(*_: object) -> None:
        raise kind(f"{place}: no", 5) if issubclass(kind, errors.BusyError) else kind(f"{place}: no")

    monkeypatch.setattr(app_module, "carry_out", fail)
    reply = ask(live, "POST", "/restore", png)
    assert reply.status == errors.STATUS.get(kind, 503 if kind is MemoryError else 500)
    assert [part for part in SECRET if part in reply.error] == []


def test_answers_of_a_real_server_name_no_folder_of_this_machine(live, png):
    folders = [str(Path(live.uri).parent), str(Path(__file__).parents[3]), str(Path.home()), os.sep + "tmp", "/usr"]
    asked = [
        ("POST", "/restore?scale=3", png),
        ("POST", "/restore?scale=9&sigma=x&model=/usr/lib", png),
        ("POST", "/restore", b"no image"),
        ("POST", "/restore", png[:200]),
        ("GET", "/usr/share", b""),
        ("PUT", "/tmp/x", b"x"),
        ("DELETE", "/restore", b""),
    ]
    for method, target, body in asked:
        reply = ask(live, method, target, body)
        assert reply.status >= 400
        assert [folder for folder in folders if folder in reply.error.replace("'/usr/lib'", "")] == []
    assert "not made for scale 3" in ask(live, "POST", "/restore?scale=3", png).error
    assert str(Path(live.uri).parent) not in ask(live, "GET", "/healthz").body.decode()


def test_too_little_memory_is_said_without_the_options_of_the_server(live, png):
    reply = ask(live, "POST", "/restore", png, max_memory=1)
    assert (reply.status, "memory" in reply.error, "--" in reply.error) == (413, True, False)


def odd_files() -> dict[str, bytes]:
    """Files over which decoders stumble, each in its own way."""
    wide = b"BM" + (14 + 40).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
    wide += (2**20 + 1).to_bytes(4, "little") + (1).to_bytes(4, "little") + b"\1\0\x18\0" + bytes(24)
    tiff = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tiff, "TIFF")
    typed = bytearray(tiff.getvalue())
    first = int.from_bytes(typed[4:8], "little")
    damaged = {}
    for tag in range(int.from_bytes(typed[first : first + 2], "little")):
        at = first + 2 + 12 * tag
        for kind in (2, 5, 7, 12, 99):
            changed = bytearray(typed)
            changed[at + 2] = kind
            damaged[f"tiff-{tag}-{kind}"] = bytes(changed)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + bytes([0x12, 1, 2, 0, 9, 0, 0, 0, 26, 0, 0, 0]) + bytes(4) + b"sideways\0"
    jpeg = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(jpeg, "JPEG", exif=exif)
    return {"bmp": wide + bytes(99), "bmp-short": wide[:20], "jpeg": jpeg.getvalue(), **damaged}


def test_what_a_decoder_stumbles_over_is_the_clients(live):
    for name, data in odd_files().items():
        for body, headers in ((data, {}), form(data)):
            reply = ask(live, "POST", "/restore?sigma=0", body, headers)
            assert reply.status in {200, 400, 413}, (name, reply.status, reply.body[:200])


def test_a_decoder_that_raises_anything_is_the_clients(live, png, monkeypatch):
    def fail(_: bytes) -> None:
        raise BadImageError("OpenCV(5.0.0) /io/opencv/modules/imgcodecs/src/loadsave.cpp:821: error: (-215)")

    monkeypatch.setattr("pipeline.serving.answer.decode_photograph", fail)
    reply = ask(live, "POST", "/restore", png)
    assert (reply.status, "/io/" in reply.error) == (400, False)


def test_a_models_name_that_no_header_can_hold_is_escaped(folder, png, tmp_path):
    odd = tmp_path / "modèle\r\nX-Evil: 1 模"
    odd.symlink_to(folder)
    reply = ask(LiveModel(str(odd)), "POST", "/restore?sigma=0.01", png)
    assert reply.status == 200
    assert reply.headers["x-model"] == "mod%C3%A8le%0D%0AX-Evil: 1 %E6%A8%A1"
    assert "x-evil" not in reply.headers
