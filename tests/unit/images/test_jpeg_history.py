"""Pixels that were a stronger JPEG before: found with their quality and error, and nothing found where nothing was."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.images.decode import decode_photograph
from pipeline.images.jpeg_history import earlier_coding
from pipeline.images.jpeg_level import quantisation_tables
from tests.helpers.hard_pictures import hard_pictures
from tests.unit.images.test_jpeg_level import PHOTOGRAPHS, small, stored


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 92, 100])
def test_the_tables_are_those_that_the_library_writes(quality):
    written = Image.open(io.BytesIO(stored(small("coffee"), quality, 0))).quantization
    luma, chroma = quantisation_tables(quality)
    assert written[0] == luma
    assert written[1] == chroma


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize(
    ("first", "cut", "last"),
    [(30, (0, 0), 90), (50, (0, 0), 80), (70, (0, 0), 95), (40, (3, 5), 90), (60, (0, 6), 92), (50, (4, 0), None)],
)
def test_a_picture_stored_twice_tells_of_the_stronger_time(name, first, cut, last):
    """Cut or not between; what the last file alone tells is a fifth to a half of the error."""
    image = small(name)[cut[0] :, cut[1] :]
    between = decoded(stored(small(name), first, 2))[cut[0] :, cut[1] :]
    photograph = decode_photograph(png(between) if last is None else stored(between, last, 2))
    true = float(np.sqrt(np.square(photograph.pixels / 255 - image / 255).mean()))
    assert photograph.file_error == pytest.approx(true, rel=0.4)
    (note,) = photograph.notes
    assert abs(int(note.split()[6]) - first) <= 1
    assert note.startswith("it was a JPEG of quality")


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("quality", [40, 60, 75, 90, None])
def test_a_picture_stored_once_tells_of_once(name, quality):
    data = png(small(name)) if quality is None else stored(small(name), quality, 2)
    assert decode_photograph(data).notes == ()


def test_drawn_small_and_noisy_pictures_tell_of_none():
    for hard in hard_pictures():
        if not hard.file_error:
            assert earlier_coding(hard.lr, None) is None, hard.name
    noise = np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8)
    for image in (noise, np.full((64, 64, 3), 9, np.uint8), noise[:20], noise[:, :31]):
        assert earlier_coding(image, None) is None


def test_a_grey_and_a_transparent_picture_are_looked_at_too():
    grey = decoded(stored(np.asarray(Image.fromarray(small("astronaut")).convert("L")), 50, 0))
    found = earlier_coding(grey, None)
    assert found is not None
    assert found.quality == 50
    seen = np.dstack([decoded(stored(small("astronaut"), 50, 2)), np.full(grey.shape, 200, np.uint8)])
    assert decode_photograph(png(seen)).file_error == pytest.approx(found.error, rel=0.7)
    deep = decode_photograph(png(grey.astype(np.uint16) * 257))
    assert deep.file_error == 0  # 16 bits are no JPEG's
