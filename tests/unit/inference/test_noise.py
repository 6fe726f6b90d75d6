"""The noise estimate: the reference's number, and the noise that was put in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.inference.noise import estimate_sigma, noise_level


def philox(key):
    return np.random.Generator(np.random.Philox(key=key))


def scene(height=120, width=160):
    """Smooth shading with a few hard edges, the same in all channels, 40 ... 215."""
    row, column = np.mgrid[:height, :width]
    shading = 128 + 50 * np.sin(row / 17) * np.cos(column / 23)
    return (shading + 30 * ((row // 40 + column // 50) % 2))[..., None].repeat(3, -1)


def test_gives_scikit_images_number():
    """`skimage.restoration.estimate_sigma` 0.26 with PyWavelets 1.8 on an image of odd height, mean of the channels."""
    texture = philox(7).integers(0, 256, (33, 48, 3), dtype=np.uint8) // np.uint8(3)
    image = texture + np.arange(48, dtype=np.uint8)[None, :, None]
    assert estimate_sigma(image) == pytest.approx(0.09585132021291083, rel=1e-12)


@pytest.mark.parametrize("level", [2, 5, 10, 25])
def test_finds_the_noise_that_was_added(level):
    noisy = scene() + philox(level).normal(0, level, (120, 160, 3))
    found = 255 * estimate_sigma(noisy.round().clip(0, 255).astype(np.uint8))
    assert found == pytest.approx(level, rel=0.06)


def test_shading_and_edges_alone_are_not_noise():
    assert 255 * estimate_sigma(scene().round().astype(np.uint8)) < 0.5


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_flat_image_has_none(value):
    assert estimate_sigma(np.full((32, 40, 3), value, np.uint8)) == 0


def lamps(side=160, count=6):
    """Bright disks of hard edges on black, smoothed by one pixel: a twentieth of the picture."""
    row, column = np.mgrid[:side, :side]
    place = philox(2).uniform(20, side - 20, (count, 2))
    near = np.min([np.hypot(row - y, column - x) for y, x in place], axis=0)
    return (255 * (7 - near).clip(0, 1))[..., None].repeat(3, -1).astype(np.uint8)


def page(size=160):
    """Words on grey: strokes of three pixels, two fifths of the picture."""
    strokes = (np.mgrid[:size, :size][1] // 3 % 4 == 0) & (np.mgrid[:size, :size][0] // 20 % 2 == 0)
    return np.where(strokes, 40, 200)[..., None].repeat(3, -1).astype(np.uint8)


@pytest.mark.parametrize("drawn", [lamps(), 255 - lamps(), page()])
def test_what_is_drawn_in_flat_colours_has_none(drawn):
    assert estimate_sigma(drawn) == 0


@pytest.mark.parametrize("offset", [-60, 0, 60])
def test_noise_is_found_where_a_part_is_clipped(offset):
    """Half of the picture or less, of black or of white, hides its noise and takes nothing from what the rest says."""
    noisy = scene() + offset + philox(3).normal(0, 5, (120, 160, 3))
    bright = scene() + offset
    seen = (noisy * ((bright > 15) & (bright < 240)) + 255.0 * (bright >= 240)).round().clip(0, 255).astype(np.uint8)
    assert 255 * estimate_sigma(seen) == pytest.approx(5, rel=0.2)


def test_too_small_to_tell_is_none():
    assert estimate_sigma(philox(0).integers(0, 256, (15, 200, 3), dtype=np.uint8)) == 0
    assert estimate_sigma(philox(0).integers(0, 256, (16, 200, 3), dtype=np.uint8)) > 0.1


def test_mirror_images_have_the_same_noise_nearly():
    noisy = (scene() + philox(1).normal(0, 6, (120, 160, 3))).round().clip(0, 255).astype(np.uint8)
    for other in (noisy[::-1], noisy[:, ::-1], noisy.swapaxes(0, 1)):
        assert estimate_sigma(other) == pytest.approx(estimate_sigma(noisy), rel=0.05)


def textured(height=120, width=160):
    """The scene with grey grain on a third of it, blurred less than the noise that is added."""
    grain = 14 * philox(5).standard_normal((height, width, 1)) * (np.mgrid[:height, :width][1] < width // 3)[..., None]
    return scene(height, width) + grain


def rounded(values):
    return values.round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("level", [2, 5, 10])
def test_texture_is_told_from_noise(level):
    """Grain in a part of the picture counts as noise for the median, and not for what the restorer is told."""
    noisy = rounded(textured() + philox(level).normal(0, level, (120, 160, 3)))
    assert 255 * noise_level(noisy, 0.0) == pytest.approx(level, rel=0.12, abs=0.5)
    assert estimate_sigma(noisy) > 1.1 * noise_level(noisy, 0.0)


def test_where_colours_are_alike_texture_is_not_told_from_noise():
    """A file may have smoothed the colours, and with them the noise."""
    grey = rounded(textured())
    assert noise_level(grey, 0.0) == estimate_sigma(grey) > 0


def test_colours_tell_even_texture_from_noise():
    """Grain everywhere, of two colours at once: what the third says is noise is believed up to a half."""
    grain = 6 * philox(5).standard_normal((120, 160, 1))
    noisy = rounded(scene() + grain + philox(1).normal(0, 3, (120, 160, 3)))
    assert 2.9 <= 255 * noise_level(noisy, 0.0) <= 255 * estimate_sigma(noisy)


@pytest.mark.parametrize("level", [2, 5])
def test_grey_noise_is_noise(level):
    """The same in all colours, as files with smoothed colours have it."""
    noisy = rounded(scene() + philox(level).normal(0, level, (120, 160, 1)))
    assert 255 * noise_level(noisy, 0.0) == pytest.approx(level, rel=0.12)
    assert 255 * noise_level(noisy[..., :1], 0.0) == pytest.approx(level, rel=0.12)


def test_noise_that_grows_with_the_light_is_found():
    clean = scene()
    noisy = rounded(clean + philox(4).normal(0, 1, (120, 160, 3)) * 5 * np.sqrt(0.3 + 1.4 * clean / 255))
    assert 255 * noise_level(noisy, 0.0) == pytest.approx(5, rel=0.12)


def test_a_jpeg_is_told_by_all_its_details_and_its_file():
    noisy = rounded(textured() + philox(1).normal(0, 3, (120, 160, 3)))
    assert noise_level(noisy, 0.02) == pytest.approx(np.hypot(estimate_sigma(noisy), 0.02))


@pytest.mark.parametrize("drawn", [lamps(), page()])
def test_no_level_is_told_of_flat_colours(drawn):
    assert noise_level(drawn, 0.0) == 0


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), channels=st.sampled_from([1, 3]), seed=st.integers(0, 9))
def test_any_picture_has_a_level_of_at_most_its_details(height, width, channels, seed):
    image = philox(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    assert 0 <= noise_level(image, 0.0) <= estimate_sigma(image)
