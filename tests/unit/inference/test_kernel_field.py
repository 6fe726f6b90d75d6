"""A kernel for every place: weights sum to one, one kernel is the plain restoration, two blurs are told apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage import data

from kernels_bank import benchmark_kernels
from kernels_bank.runtime.errors import BadRequestError
from pipeline.inference import Restorer, kernel_field
from pipeline.inference.estimate import Estimate
from pipeline.inference.field_picture import described, mosaic
from pipeline.inference.kernel_field import CELL, KernelField, enlarged, estimate_field, restore_field, windows
from pipeline.inference.restorer import Restored
from pipeline.inference.windows import Settings, restore_planes

NARROW, WIDE = benchmark_kernels(25)[[0, 2]]
SIZE = {"item": 1, "channels": 3}


def settings(kernel: np.ndarray, sigma: float = 0.5 / 255) -> Settings:
    return Settings(2, sigma, kernel, False, 2**31, None, None)


def halves() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A photograph, an LR image of it whose right half is more blurred, and by column of cells where that is."""
    sharp = data.astronaut()[:256, 60:380].astype(np.float32) / 255
    narrow, wide = (gaussian_filter(sharp, (width, width, 0)) for width in (0.7, 2.0))
    right = np.clip((np.arange(320) - 150) / 20, 0, 1)[None, :, None]
    blurred = ((1 - right) * narrow + right * wide).astype(np.float32)[::2, ::2]
    return sharp, (blurred * 255).round().astype(np.float32) / 255, right[0, ::16, 0]


def psnr(image: np.ndarray, sharp: np.ndarray) -> float:
    return float(-10 * np.log10(np.square(image[12:-12, 12:-12] - sharp[12:-12, 12:-12]).mean()))


@pytest.mark.parametrize(("height", "width"), [(20, 50), (64, 65), (200, 321), (1500, 2100), (3000, 5000)])
def test_windows_with_their_neighbourhoods_cover_the_image(height, width):
    seen = np.zeros((height, width), bool)
    boxes = windows(height, width)
    for box in boxes:
        assert (box.top % CELL, box.left % CELL) == (0, 0)
        box.grown(kernel_field._spacing(max(height, width), box.bottom - box.top), height, width).of(seen)[:] = True
    assert seen.all()
    assert len(boxes) < 150


def test_weights_sum_to_one_at_every_pixel():
    winner = np.random.default_rng(0).integers(0, 4, (9, 13))
    weights = kernel_field._weights(winner, 5)
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-6)
    assert not weights[4].any()
    total = sum(enlarged(weight, 70, 99, 2) for weight in weights)
    assert total.shape == (140, 198)
    np.testing.assert_allclose(total, 1, atol=1e-5)


def test_a_field_of_one_kernel_is_the_plain_restoration(restorer):
    """With the same kernel everywhere: to the bit as one, and to the tolerance of windows as two that are blended."""
    lr = data.chelsea()[40:168, 60:260].astype(np.float32) / 255
    plain = restore_planes(restorer, lr, settings(NARROW), **SIZE)
    one = KernelField(NARROW[None], np.ones((1, 16, 25), np.float32), 1)
    np.testing.assert_array_equal(restore_field(restorer, lr, settings(WIDE), one, **SIZE).image, plain.image)
    winner = np.zeros((16, 25), int)
    winner[4:12, 10:] = 1
    two = KernelField(np.stack([NARROW, NARROW]), kernel_field._weights(winner, 2), 1)
    blended = restore_field(restorer, lr, settings(WIDE), two, **SIZE)
    assert np.abs(blended.image - plain.image).max() < 2e-3
    assert blended.residual == pytest.approx(plain.residual, rel=0.02)


def test_what_windows_leave_unexplained_is_the_residual(restorer, photo):
    lr = photo.astype(np.float32) / 255
    result = restore_planes(restorer, lr, settings(WIDE), **SIZE)
    edge = kernel_field.border(64, settings(WIDE))
    inside = result.unexplained[edge:-edge, edge:-edge]
    assert float(np.sqrt(inside.mean())) == pytest.approx(result.residual, rel=1e-4)


def test_two_blurs_are_told_apart_and_an_outlier_changes_nothing(monkeypatch):
    """Estimates are the truth, but for the first window, in the sharp half, which is told of a shaken camera."""
    model = Restorer.load("shipped:blind-sr-x2", torch.device("cpu"))
    sharp, lr, right = halves()
    boxes = windows(*lr.shape[:2])

    def estimate(_: Restorer, crop: np.ndarray, *__: object) -> Estimate:
        (box,) = (box for box in boxes if np.array_equal(box.of(lr), crop))
        if box == boxes[0]:
            return Estimate(benchmark_kernels(25)[9], 0, None)
        return Estimate(WIDE if box.left + box.right > 160 else NARROW, 0, None)

    monkeypatch.setattr(kernel_field, "estimate_kernel", estimate)
    field = estimate_field(model, lr, settings(NARROW), "corner", **SIZE)
    of_wide = sum(w for k, w in zip(field.kernels, field.weights, strict=True) if np.array_equal(k, WIDE))
    by_column = of_wide.mean(0)
    assert by_column[right == 0][:-2].mean() < 0.25
    assert by_column[right == 1][2:].mean() > 0.75
    one = max(psnr(restore_planes(model, lr, settings(kernel), **SIZE).image, sharp) for kernel in (NARROW, WIDE))
    assert psnr(restore_field(model, lr, settings(NARROW), field, **SIZE).image, sharp) > one + 0.5


def test_a_field_comes_with_the_answer_and_in_a_picture(restorer, photo, monkeypatch):
    restored = restorer.restore(photo, 2, kernel_field=True)
    assert isinstance(restored.field, KernelField)
    assert restored.image.shape == (128, 144, 3)
    drawn = mosaic(restored)
    assert (drawn.shape, drawn.dtype) == ((128, 144, 3), np.uint8)
    assert sum(described(restored.field)["shares"]) == pytest.approx(1, abs=0.01)


def test_a_given_kernel_is_no_field(restorer, photo):
    with pytest.raises(BadRequestError, match="leave out the given one"):
        restorer.restore(photo, 2, 0.0, NARROW, kernel_field=True)


def test_a_picture_of_kernels_with_negative_lobes():
    kernels = np.stack([NARROW - 0.01, WIDE])
    field = KernelField(kernels, np.full((2, 4, 6), 0.5, np.float32), 3)
    image = np.full((64, 96), 40000, np.uint16)
    restored = Restored(image, NARROW, 0.0, 0.0, 2, 0.0, field=field)
    assert mosaic(restored).shape == (64, 96, 3)
