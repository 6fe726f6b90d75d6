"""Where the kernel is estimated, and how the estimates of several places become one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage import data

from pipeline.inference import Restorer, estimate
from pipeline.inference.estimate import Estimate, blur_of, estimate_kernel
from pipeline.inference.texture import textured_crops
from pipeline.model.gaussian_fit import matching_gaussian
from pipeline.model.initial import Initial
from pipeline.shipped import FOR_PHOTOGRAPHS


def test_crops_lie_on_texture_and_apart():
    image = np.full((300, 400, 3), 0.5, np.float32)
    random = np.random.default_rng(0)
    image[200:280, 300:380] += 0.2 * random.random((80, 80, 1), np.float32)
    image[0:100, 0:100] += 0.16 * random.random((100, 100, 1), np.float32)
    (first, second, *_) = textured_crops(image, 80, 3)
    assert 180 <= first[0] <= 220
    assert 280 <= first[1] <= 320
    assert second[0] <= 40
    assert second[1] <= 40


def test_clipped_pixels_are_no_texture():
    image = np.full((100, 300, 3), 0.5, np.float32)
    image[:, :100] = np.random.default_rng(0).integers(0, 2, (100, 100, 1))
    image[:, 200:] += 0.05 * np.random.default_rng(0).random((100, 100, 1), np.float32)
    assert textured_crops(image, 80, 1)[0][1] >= 180


def test_a_crop_larger_than_the_image_is_the_image():
    assert textured_crops(np.zeros((5, 9, 3), np.float32), 64, 3) == [(0, 0)]


def test_the_place_whose_initial_kernel_is_nearest_to_the_others_is_refined(restorer, monkeypatch):
    kernels = [np.zeros((3, 3), np.float32) for _ in range(3)]
    kernels[0][0, 0] = kernels[1][1, 1] = kernels[2][1, 1] = 1
    kernels[2][1, 1], kernels[2][1, 2] = 0.9, 0.1
    crops: list[np.ndarray] = []
    refined: list[np.ndarray] = []

    def initial(crop: np.ndarray, scale: int, sigma: float) -> Initial:
        crops.append(crop)
        kernel = torch.from_numpy(kernels[len(crops) - 1])[None]
        return Initial(kernel, torch.zeros(1, 1), None)

    def guarded(network: object, crop: np.ndarray, *_: object) -> Estimate:
        refined.append(crop)
        return Estimate(kernels[0], 1, None)

    monkeypatch.setattr(restorer, "initial", initial)
    monkeypatch.setattr(estimate, "_guarded", guarded)
    lr = np.random.default_rng(0).random((600, 600, 3)).astype(np.float32)
    best = estimate_kernel(restorer, lr, 2, 0.0, "corner")
    assert len(crops) == 3
    assert len(refined) == 1
    assert refined[0] is crops[1]
    assert best.kernel_round == 1
    np.testing.assert_allclose(best.spread, (2 + 0.2) / 2, rtol=1e-6)


def test_where_nothing_is_to_be_refined_nothing_is_restored(monkeypatch):
    """A photograph whose blur is a Gaussian's: the estimate is what the guard would let stand, without its work."""
    shipped = Restorer.load(FOR_PHOTOGRAPHS, torch.device("cpu"))
    lr = data.astronaut()[:96, 200:296] / np.float32(255)
    first = shipped.initial(lr, 2, 0.01)
    settled = first._replace(start=matching_gaussian(first.start))
    monkeypatch.setattr(shipped, "initial", lambda *_: settled)
    whole = shipped.blind(shipped.tensor(lr), 2, 0.01, grid="centre", first=settled)
    monkeypatch.setattr(shipped, "blind", lambda *_, **__: pytest.fail("restored"))
    found = estimate_kernel(shipped, lr, 2, 0.01, "centre")
    assert found.kernel_round == 0
    np.testing.assert_array_equal(found.kernel, whole.kernel[0].numpy())
    assert found.blur is not None
    assert found.blur.width == blur_of(whole).width
    np.testing.assert_array_equal(found.blur.shares, blur_of(whole).shares)


def test_a_small_image_is_one_place(restorer, photo):
    found = estimate_kernel(restorer, photo / np.float32(255), 2, 0.0, "corner")
    assert found.spread is None
    assert found.kernel_round in {0, 1}
    np.testing.assert_allclose(found.kernel.sum(), 1, atol=1e-5)
