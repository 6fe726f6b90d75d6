"""The error that a JPEG file tells of itself, against the error that was made."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, features
from scipy import ndimage
from skimage import data

from pipeline.images.decode import decode_photograph
from pipeline.images.jpeg_level import jpeg_error

PHOTOGRAPHS = {name: getattr(data, name)() for name in ("astronaut", "coffee", "chelsea", "rocket")}


def small(name: str) -> np.ndarray:
    """A photograph as a camera sees it small, never a JPEG at this size."""
    image = ndimage.gaussian_filter(PHOTOGRAPHS[name].astype(np.float32), (1.2, 1.2, 0))[::2, ::2]
    return np.asarray(image.round().clip(0, 255), np.uint8)


def stored(image: np.ndarray, quality: int, subsampling: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return buffer.getvalue()


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("quality", [30, 50, 70, 85, 90])
def test_the_error_is_told_within_a_third(quality, subsampling):
    ratios = []
    for name in PHOTOGRAPHS:
        image = small(name)
        found = decode_photograph(stored(image, quality, subsampling))
        true = float(np.sqrt(np.square(found.pixels / 255 - image / 255).mean()))
        ratios.append(np.log(found.file_error / true))
    assert np.abs(ratios).max() < np.log(4 / 3)
    assert abs(np.mean(ratios)) < 0.2


def test_a_lossless_file_tells_of_none():
    buffer = io.BytesIO()
    Image.fromarray(small("coffee")).save(buffer, "PNG")
    assert decode_photograph(buffer.getvalue()).file_error == 0


@pytest.mark.parametrize(("kind", "lossless", "told"), [("WEBP", False, 3), ("WEBP", True, 0), ("AVIF", False, 3)])
def test_a_lossy_file_without_tables_is_given_an_error(kind, lossless, told):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    buffer = io.BytesIO()
    Image.fromarray(small("coffee")).save(buffer, kind, quality=85, **({"lossless": True} if lossless else {}))
    assert 255 * decode_photograph(buffer.getvalue()).file_error == pytest.approx(told)


def test_grey_and_tiny_and_flat_pictures_have_a_finite_error():
    table = [16] * 64
    for shape in ((1, 1), (7, 7), (8, 8), (300, 9), (64, 64, 3)):
        for image in (np.full(shape, 200, np.uint8), np.random.default_rng(0).integers(0, 256, shape, np.uint8)):
            found = jpeg_error(image, [table], 2)
            assert 0 <= found < 0.2


def test_a_large_picture_is_judged_by_its_bands():
    """As well as the whole: the cost does not grow with a picture's size."""
    wide = np.tile(small("astronaut"), (6, 6, 1))
    found = decode_photograph(stored(wide, 80, 2))
    one = decode_photograph(stored(small("astronaut"), 80, 2))
    assert found.file_error == pytest.approx(one.file_error, rel=0.1)
