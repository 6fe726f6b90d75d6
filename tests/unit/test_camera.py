"""The effects of cameras after the blur: shot noise, 8 bit, JPEG."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.camera import JpegPass, from_linear, sensor_noise, through_jpeg, to_linear

RANDOM = np.random.default_rng(0)
Y, X = np.mgrid[:48, :64]
PICTURE = np.stack([0.5 + 0.4 * np.sin(0.3 * X + c) * np.cos(0.2 * Y) for c in range(3)]).astype(np.float32)


def test_shot_noise_grows_with_the_light_and_is_sigma_at_middle_grey():
    sigma = 0.05
    for light, expected in ((0.0, 0.3), (0.5, 1.0), (1.0, 1.7)):
        flat = np.full((3, 200, 200), light, np.float32)
        noise = sensor_noise(flat, sigma, np.random.default_rng(1), shot=True)
        assert noise.std() / sigma == pytest.approx(expected**0.5, rel=0.01)
        assert sensor_noise(flat, sigma, np.random.default_rng(1), shot=False).std() == pytest.approx(sigma, rel=0.01)


def test_the_same_draws_whatever_the_noise_is():
    """So that another share of shot noise changes no other sample."""
    following = []
    for sigma, shot in ((0.0, False), (0.1, False), (0.1, True)):
        random = np.random.default_rng(3)
        sensor_noise(PICTURE, sigma, random, shot=shot)
        following.append(int(random.integers(1 << 30)))
    assert following[0] == following[1] == following[2]


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
def test_a_better_jpeg_is_nearer(subsampling):
    errors = [
        np.abs(through_jpeg(PICTURE, (JpegPass(quality, subsampling),)) - PICTURE).mean() for quality in (30, 70, 98)
    ]
    assert errors[0] > errors[1] > errors[2] > 0


def test_a_jpeg_has_8_bit_and_the_size_of_the_picture():
    for shape in ((3, 17, 23), (3, 8, 8), (3, 5, 3)):
        stored = through_jpeg(RANDOM.random(shape, dtype=np.float32) * 1.4 - 0.2, (JpegPass(80, "4:2:0", (3, 6)),))
        assert stored.shape == shape
        np.testing.assert_array_equal(np.round(stored * 255) / np.float32(255), stored)


def blockiness(image: np.ndarray, row: int) -> float:
    """How much larger the steps between rows `row` - 1 and `row` (modulo 8) are than all others."""
    steps = np.abs(np.diff(image, axis=1)).mean((0, 2))
    at = np.arange(1, image.shape[1]) % 8 == row
    return float(steps[at].mean() / steps[~at].mean())


@pytest.mark.parametrize("down", [0, 3])
def test_a_shifted_grid_has_its_blocks_elsewhere(down):
    noisy = (PICTURE + 0.1 * RANDOM.standard_normal(PICTURE.shape)).astype(np.float32)
    stored = through_jpeg(noisy, (JpegPass(10, "4:4:4", (down, 0)),))
    rows = [blockiness(stored, row) for row in range(8)]
    assert int(np.argmax(rows)) == down


def test_linear_light_and_back():
    values = np.linspace(0, 1, 1001, dtype=np.float32)
    np.testing.assert_allclose(from_linear(to_linear(values)), values, atol=1e-6)
    assert to_linear(np.array([0.5]))[0] == pytest.approx(0.21404, abs=1e-5)
    np.testing.assert_allclose(from_linear(np.array([-0.1, 1.2])), [0, 1], atol=1e-12)
