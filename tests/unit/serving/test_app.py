"""What comes in and out over HTTP: the restorer's own pixels, and one line for what is wrong."""

from __future__ import annotations

import base64
import io
import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.images.decode import decode_photograph
from pipeline.images.encode import encode_photograph, encode_png
from pipeline.images.parts import Metadata
from pipeline.images.photograph import Photograph
from pipeline.serving import answer
from pipeline.serving import app as app_module
from pipeline.serving.describe import RESTORE
from pipeline.serving.errors import STATUS
from pipeline.serving.request import RestoreOptions
from tests.unit.images.samples import profile
from tests.unit.serving.asgi import ask, form


def gif() -> bytes:
    encoded = io.BytesIO()
    Image.new("L", (8, 8)).save(encoded, "GIF")
    return encoded.getvalue()


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
        assert int(reply.headers["x-kernel-round"]) == expected.kernel_round
        assert reply.headers["x-weights-sha256"] == live.current.restorer.digest
        assert re.findall(r"(\w+);dur=\d+", reply.headers["server-timing"]) == [
            "decode",
            "estimate",
            "restore",
            "encode",
        ]


def test_every_header_of_an_answer_is_described(live, photo):
    """In the API description and on the page; those whose value does not apply are left out of an answer."""
    restored = replace(live.current.restorer.restore(photo, 2, 0.01), spread=0.1, trust=0.9)
    about = answer._about(restored, live.current, Photograph(photo, "png"), ["lost"])
    headers = answer._headers(about, restored.kernel, {"decode": 0.0}).keys() - {"Content-Disposition"}
    assert headers == RESTORE["responses"]["200"]["headers"].keys()
    page = (Path(__file__).parents[3] / "docs" / "serve.md").read_text(encoding="utf-8")
    assert not [name for name in (*headers, *RestoreOptions.model_fields) if f"`{name}`" not in page]


@pytest.mark.parametrize("how", [{"headers": {"accept": "application/json"}}, {"target": "/restore?format=json"}])
def test_json_says_the_same(live, photo, png, how):
    found = ask(live, "POST", how.get("target", "/restore"), png, how.get("headers")).json
    expected = live.current.restorer.restore(photo, 2)
    assert np.array_equal(decode_photograph(base64.b64decode(found["image"])).pixels, expected.image)
    assert np.array_equal(np.float32(found["kernel"]), expected.kernel)
    assert (found["sigma"], found["sigma_from"]) == (expected.sigma, "estimated")
    assert (found["width"], found["height"]) == (80, 96)
    drawn = decode_photograph(base64.b64decode(found["kernel_png"])).pixels
    assert np.abs(drawn / 65535 - expected.kernel.clip(0) / expected.kernel.max()).max() < 1e-5
    assert "bicubic" not in found


def test_another_strength_costs_no_second_estimate(live, photo, png, monkeypatch):
    """The kernel and the noise level of an answer go back with the same image."""
    first = ask(live, "POST", "/restore?format=json", png).json
    assert (first["strength"], first["kernel_from"]) == (1, "estimated")
    fields = {"kernel": json.dumps(first["kernel"]), "sigma": str(first["sigma"]), "format": "json"}
    monkeypatch.setattr(type(live.current.restorer), "blind", None)  # an estimate would call it
    again = ask(live, "POST", "/restore", *form(png, fields)).json
    assert (again["image"], again["kernel"], again["kernel_from"]) == (first["image"], first["kernel"], "given")
    weaker = ask(live, "POST", "/restore?strength=0.5", *form(png, fields)).json
    assert (weaker["strength"], weaker["kernel"], weaker["sigma"]) == (0.5, first["kernel"], first["sigma"])
    expected = live.current.restorer.restore(photo, 2, first["sigma"], np.float32(first["kernel"]), strength=0.5)
    assert np.array_equal(decode_photograph(base64.b64decode(weaker["image"])).pixels, expected.image)
    assert weaker["image"] != first["image"]


def test_pictures_for_the_page_are_aligned_with_the_result(live, photo, png):
    found = ask(live, "POST", "/restore?format=json&pictures=true", png).json
    shown = {name: decode_photograph(base64.b64decode(found[name])).pixels for name in ("input", "bicubic", "image")}
    assert np.array_equal(shown["input"], photo)
    # Both lie where every program puts an enlargement: what is left of them made small again is the input.
    assert shown["bicubic"].shape == shown["image"].shape
    small = cv2.resize(shown["bicubic"], (photo.shape[1], photo.shape[0]), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - photo)[2:-2, 2:-2].mean() < 1.5


def test_depth_alpha_profile_and_orientation_are_kept(live, photo):
    deep = np.dstack([photo.astype(np.uint16) * 257, np.full(photo.shape[:2], 65535, np.uint16)])
    icc = profile(b"RGB ")
    reply = ask(live, "POST", "/restore", encode_photograph(Photograph(deep, "png", Metadata(icc)), 100))
    back = decode_photograph(reply.body)
    assert (back.pixels.dtype, back.pixels.shape, back.metadata.icc) == (np.uint16, (96, 80, 4), icc)
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
        ("/restore?strength=1.2", "strength: "),
        ("/restore?kernel=[[1,0],[0,0]]", "kernel: "),
        ("/restore?kernel=[[2]]", "kernel: "),
        ("/restore?kernel=[[NaN]]", "kernel: "),
        ("/restore?kernel=gaussian", "kernel: "),
        ("/restore?kernel=[[true]]", "kernel: "),
        ('/restore?kernel=[["1"]]', "kernel: "),
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
    assert health["model"]["device"] == "cpu", "tests/cuda/serving.py reads it"
    assert health["limits"]["max_pixels"] == 5000
    assert (health["alias"], health["refused"]) == (None, None)


def test_the_description_is_of_what_there_is(live):
    schema = ask(live, "GET", "/openapi.json").json
    assert set(schema["paths"]) == {"/restore", "/healthz"}
    restore = schema["paths"]["/restore"]["post"]
    assert [one["name"] for one in restore["parameters"]] == list(RestoreOptions.model_fields)
    assert {"200", *(str(status) for status in STATUS.values())} <= set(restore["responses"])
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
    tiff = encode_photograph(Photograph(photo, "tiff"), 100)
    assert ask(live, "POST", "/restore", tiff).body == ask(live, "POST", "/restore", encode_png(photo)).body
