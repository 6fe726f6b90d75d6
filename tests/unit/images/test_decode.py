"""Image files to pixels: what is converted, what is refused, and that OpenCV's BGR does not leak."""

from __future__ import annotations

import io
import struct
import zlib
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from pipeline.images import BadImageError
from pipeline.images.decode import decode_image, decode_tile
from pipeline.images.encode import encode_png, encode_tile
from pipeline.images.header import read_header
from pipeline.images.photograph import Codec

RED = (200, 30, 10)


def file(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_colours_come_out_as_rgb(kind: str):
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode_image(file(Image.new("RGB", (5, 3), RED), kind, **options))
    assert image.shape == (3, 5, 3)
    assert np.array_equal(image, np.broadcast_to(np.uint8(RED), (3, 5, 3)))


def test_png_roundtrip_is_lossless_and_its_bytes_repeat():
    pixels = np.random.default_rng(0).integers(0, 256, (17, 23, 3), dtype=np.uint8)
    for codec in get_args(Codec):
        assert np.array_equal(decode_tile(encode_tile(pixels, codec)), pixels)
        with pytest.raises(BadImageError):
            decode_tile(encode_tile(pixels, codec)[:-9])
    assert encode_png(pixels) == encode_png(pixels.copy())


def test_sixteen_bits_are_rounded():
    values = np.array([[0, 128, 129, 257, 385, 386, 65535]], np.uint16)
    image = decode_image(encode_png(values))
    assert image[0, :, 0].tolist() == np.round(values[0] / 257).astype(int).tolist()


def test_grey_becomes_three_equal_channels():
    image = decode_image(file(Image.new("L", (4, 4), 77)))
    assert image.shape == (4, 4, 3)
    assert (image == 77).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_lie_over_white(mode: str):
    channels = 4 if mode == "RGBA" else 2
    picture = np.zeros((1, 3, channels), np.uint8)
    picture[0, :, -1] = [0, 128, 255]
    assert decode_image(file(Image.fromarray(picture, mode)))[0, :, 0].tolist() == [255, 127, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int):
    upright = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file(Image.fromarray(upright), "PNG", exif=exif)
    from PIL import ImageOps

    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(decode_image(data), expected)
    header = read_header(data)
    assert (header.height, header.width) == expected.shape[:2]


def animated() -> bytes:
    frames = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in (1, 200)]
    return file(frames[0], "PNG", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"not an image", "not a readable image"),
        (file(Image.new("CMYK", (4, 4)), "JPEG"), "CMYK"),
        (file(Image.new("RGB", (4, 4)), "GIF"), "GIF is not supported"),
        (animated(), "animated"),
        (file(Image.new("F", (4, 4)), "TIFF"), "float32"),
        (file(Image.new("RGB", (64, 64), RED))[:90], "damaged|not a readable"),
        (b"", "not a readable image"),
    ],
)
def test_what_cannot_be_used_says_why(data: bytes, reason: str):
    with pytest.raises(BadImageError, match=reason):
        decode_image(data)


def test_a_decompression_bomb_is_refused_by_its_header():
    bomb = bytearray(file(Image.new("RGB", (4, 4))))
    bomb[16:24] = struct.pack(">II", 30_000, 10_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    with pytest.raises(BadImageError, match="more than 178956970 pixels"):
        decode_image(bytes(bomb))
