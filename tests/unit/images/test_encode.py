"""Image files in and out: pixels, depth, alpha, orientation and colour profile survive to the bit."""

from __future__ import annotations

import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.images import BadImageError
from pipeline.images.convert import to_depth
from pipeline.images.decode import decode_photograph
from pipeline.images.encode import encode_photograph
from pipeline.images.parts import Metadata
from pipeline.images.photograph import JpegCoding, Photograph

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()  # no file has this one by itself
SHAPES = {"grey": (20, 30), "grey with alpha": (19, 30, 2), "rgb": (21, 30, 3), "rgba": (20, 31, 4)}


def pixels(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def lossless() -> list[tuple]:
    both = [
        (kind, dtype, shape)
        for kind in ("png", "tiff")
        for dtype in (np.uint8, np.uint16)
        for shape in SHAPES
        if (kind, shape) != ("tiff", "grey with alpha")  # becomes RGBA
    ]
    return [*both, ("webp", np.uint8, "rgb"), ("webp", np.uint8, "rgba")]


@pytest.mark.parametrize("icc", [ICC, None])
@pytest.mark.parametrize(("kind", "dtype", "shape"), lossless())
def test_lossless_files_give_back_every_bit(kind, dtype, shape, icc):
    original = Photograph(pixels(SHAPES[shape], dtype), kind, Metadata(icc))
    data = encode_photograph(original, quality=100)
    found = decode_photograph(data)
    assert found.pixels.dtype == dtype
    np.testing.assert_array_equal(found.pixels, original.pixels)
    assert (found.metadata.icc, found.kind) == (icc, kind)


@pytest.mark.parametrize("shape", ["grey", "rgb"])
def test_a_jpeg_keeps_its_profile_and_nearly_its_pixels(shape):
    smooth = cv2.GaussianBlur(pixels(SHAPES[shape], np.uint8), (0, 0), 4)
    found = decode_photograph(encode_photograph(Photograph(smooth, "jpeg", Metadata(ICC)), quality=98))
    assert found.metadata.icc == ICC
    assert found.pixels.shape == smooth.shape
    assert np.abs(found.pixels.astype(int) - smooth).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_seen_upright(kind, orientation):
    upright = np.zeros((40, 64, 3), np.uint8)
    upright[:, :32, 0], upright[:20, :, 1] = 200, 200
    # Pillow's way of storing what the viewer must turn back.
    turns = [None, None, 0, 3, 1, 5, 2, 6, 4]  # Image.Transpose by orientation, inverse
    stored = Image.fromarray(upright)
    if turns[orientation] is not None:
        stored = stored.transpose(Image.Transpose(turns[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored.save(file, kind, exif=exif, quality=98, icc_profile=ICC)
    found = decode_photograph(file.getvalue())
    assert found.metadata.icc == ICC
    assert found.pixels.shape == upright.shape
    assert np.abs(found.pixels.astype(int) - upright)[4:-4, 4:-4].mean() < 4


def test_grey_with_alpha_and_palettes_are_understood():
    grey = pixels((8, 9, 2), np.uint8)
    file = io.BytesIO()
    Image.fromarray(grey, "LA").save(file, "PNG")
    found = decode_photograph(file.getvalue()).pixels
    np.testing.assert_array_equal(found, grey)
    palette = Image.fromarray(pixels((8, 9, 3), np.uint8)).quantize(16)
    file = io.BytesIO()
    palette.save(file, "PNG")
    np.testing.assert_array_equal(decode_photograph(file.getvalue()).pixels, np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize(
    ("shape", "dtype", "kind", "message"),
    [
        ("rgba", np.uint8, "jpeg", "a JPEG has no alpha; choose --format"),
        ("rgb", np.uint16, "jpeg", "a jpeg has 8 bits; choose --depth 8"),
        ("rgb", np.uint16, "webp", "a webp has 8 bits; choose --depth 8"),
    ],
)
def test_what_a_format_cannot_hold_is_said(shape, dtype, kind, message):
    with pytest.raises(BadImageError, match=message):
        encode_photograph(Photograph(pixels(SHAPES[shape], dtype), kind), 90)


@pytest.mark.parametrize(("kind", "most"), [("jpeg", 65_500), ("webp", 16_383)])
def test_the_longest_side_of_a_format_is_written_and_no_longer_one(kind, most):
    coding = JpegCoding([[1] * 64], 0) if kind == "jpeg" else None  # its writer fails in a way of its own
    for shape in ((1, most), (most, 1)):
        assert decode_photograph(encode_photograph(Photograph(np.zeros(shape, np.uint8), kind), 90)).pixels.size
        longer = np.zeros([side + (side > 1) for side in shape], np.uint8)
        with pytest.raises(BadImageError, match=f"has up to {most} pixels a side, not {most + 1}; choose --format"):
            encode_photograph(Photograph(longer, kind, jpeg=coding), 90)


def test_depths_there_and_back():
    every = np.arange(256, dtype=np.uint8)
    deep = to_depth(every, np.dtype(np.uint16))
    assert (deep[0], deep[255]) == (0, 65535)
    np.testing.assert_array_equal(to_depth(deep, np.dtype(np.uint8)), every)
    values = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(to_depth(values, np.dtype(np.uint8)), np.rint(values / 257).astype(np.uint8))
