"""Strength: full is the restoration itself, none is close to a plain enlargement, and sharpness rises in between."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from kernels_bank import benchmark_kernels
from kernels_bank.runtime.errors import BadRequestError
from pipeline.degrade import degrade
from pipeline.images.convert import to_depth
from pipeline.inference import Restorer
from pipeline.inference.strength import assumed_kernel, assumed_sigma
from pipeline.model import upsample

KERNELS = benchmark_kernels(25)
STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)


def centroid(kernel: np.ndarray) -> np.ndarray:
    place = np.arange(kernel.shape[0])
    return np.array([(kernel.sum(axis) * place).sum() for axis in (1, 0)])


def shifted_with_lobes() -> np.ndarray:
    """A kernel half a pixel off its middle, with small negative lobes, as resizing filters have."""
    line = np.array([0, -0.05, 0.25, 0.6, 0.25, -0.05, 0, 0, 0], np.float32)
    line = (line + np.roll(line, 1)) / 2
    return np.outer(line, line) / line.sum() ** 2


@pytest.mark.parametrize("kernel", [*KERNELS, shifted_with_lobes()])
@pytest.mark.parametrize("strength", STEPS)
def test_a_told_kernel_keeps_sum_and_place(kernel, strength):
    told = assumed_kernel(kernel, strength)
    assert told.shape == kernel.shape
    assert told.sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(centroid(told), centroid(kernel), atol=0.02)


def test_full_strength_changes_nothing_and_none_is_a_point():
    np.testing.assert_array_equal(assumed_kernel(KERNELS[2], 1), KERNELS[2])
    assert assumed_sigma(0.013, 1) == 0.013
    point = np.zeros((25, 25), np.float32)
    point[12, 12] = 1
    np.testing.assert_allclose(assumed_kernel(KERNELS[2], 0), point, atol=1e-5)
    levels = [assumed_sigma(0.013, strength) for strength in STEPS]
    assert levels == sorted(levels, reverse=True)


def test_the_gain_of_the_inverse_filter_rises_with_strength():
    transfer = [
        np.abs(np.fft.rfft2(np.fft.ifftshift(assumed_kernel(KERNELS[6], strength).astype(float)))) for strength in STEPS
    ]
    for weaker, stronger in itertools.pairwise(transfer):
        assert (stronger <= weaker + 1e-6).all()


def test_full_strength_is_the_same_to_the_bit(restorer, photo):
    plain, full = restorer.restore(photo, 2), restorer.restore(photo, 2, strength=1.0)
    np.testing.assert_array_equal(full.image, plain.image)
    assert (full.residual, full.strength) == (plain.residual, 1.0)


def sharpness(image: np.ndarray) -> float:
    inner = image[8:-8, 8:-8].astype(float)
    return float(np.abs(np.diff(inner, axis=0)).mean() + np.abs(np.diff(inner, axis=1)).mean())


@pytest.mark.parametrize(("index", "gain"), [(2, 1.3), (10, 1.5)])
def test_sharpness_rises_with_strength(photo, index, gain):
    """With the model that ships, for a Gaussian kernel and one of a shaken camera."""
    model = Restorer.load("shipped:blind-sr-x2", torch.device("cpu"))
    sharp = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
    kernel = KERNELS[index]
    blurred = degrade(sharp, torch.from_numpy(kernel[None]), 2)
    lr = to_depth((blurred[0].permute(1, 2, 0).numpy() * 65535).round().astype(np.uint16), np.dtype(np.uint8))
    images = [model.restore(lr, 2, 0.5 / 255, kernel, strength=strength).image for strength in STEPS]
    plain = (upsample(model.tensor(lr / 255), 2, "bicubic")[0].permute(1, 2, 0).numpy() * 255).clip(0, 255)
    levels = [sharpness(image) for image in images]
    assert levels == sorted(levels)
    assert levels[-1] > gain * levels[0]
    assert levels[0] == pytest.approx(sharpness(plain), rel=0.2)
    apart = [float(np.sqrt(np.square(image[8:-8, 8:-8] - plain[8:-8, 8:-8]).mean())) for image in images]
    assert apart[0] < 0.5 * apart[-1]


def test_another_strength_of_a_known_kernel_needs_no_estimate(restorer, photo, monkeypatch):
    first = restorer.restore(photo, 2)
    monkeypatch.setattr(type(restorer), "blind", None)  # an estimate would call it
    again = restorer.restore(photo, 2, first.sigma, first.kernel)
    np.testing.assert_array_equal(again.image, first.image)
    weaker = restorer.restore(photo, 2, first.sigma, first.kernel, strength=0.4)
    assert sharpness(weaker.image) < sharpness(first.image)
    np.testing.assert_array_equal(weaker.kernel, first.kernel)
    assert weaker.sigma == first.sigma


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan")])
def test_a_strength_that_is_none_is_refused(restorer, photo, strength):
    with pytest.raises(BadRequestError, match="strength"):
        restorer.restore(photo, 2, strength=strength)
