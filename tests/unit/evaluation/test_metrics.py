"""Metrics against scikit-image and against what they must not be fooled by."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from kernels_bank import benchmark_kernels
from kernels_bank.centring import shift
from pipeline.evaluation import psnr, ssim
from pipeline.evaluation.metrics import compare_kernels, luma, psnr_shifted


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return data.astronaut()[100:220, 160:300]


@pytest.fixture(scope="module")
def noisy(photo: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 8, photo.shape)
    return np.clip(photo + noise, 0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("border", [0, 4])
def test_psnr_and_ssim_equal_scikit_image(photo, noisy, border):
    inside = slice(border, -border or None)
    a, b = noisy[inside, inside], photo[inside, inside]
    assert psnr(noisy, photo, border=border) == pytest.approx(peak_signal_noise_ratio(b, a), abs=1e-9)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    assert ssim(noisy, photo, border=border) == pytest.approx(
        structural_similarity(b, a, channel_axis=2, **settings), abs=1e-9
    )
    ya, yb = luma(a), luma(b)
    assert psnr(noisy, photo, border=border, channel="y") == pytest.approx(
        peak_signal_noise_ratio(yb, ya, data_range=255), abs=1e-9
    )
    assert ssim(noisy, photo, border=border, channel="y") == pytest.approx(
        structural_similarity(yb, ya, **settings), abs=1e-9
    )


def test_luma_is_bt601_studio_swing(photo):
    np.testing.assert_allclose(luma(photo), rgb2ycbcr(photo)[..., 0], atol=1e-9)
    np.testing.assert_allclose(luma(photo / 255.0), luma(photo), atol=1e-9)


def test_a_stack_gives_the_mean_of_its_images_not_of_the_pooled_error(photo, noisy):
    barely = photo.copy()
    barely[0, 0] ^= 1
    stack, truth = np.stack([noisy, barely]), np.stack([photo, photo])
    for metric in (psnr, ssim):
        each = [metric(noisy, photo), metric(barely, photo)]
        assert metric(stack, truth) == pytest.approx(np.mean(each))
    assert psnr(photo, photo) == float("inf")
    assert ssim(photo, photo) == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: (a[:-1], a), "different shape"),
        (lambda a: (a / 255.0, a), "different scales"),
        (lambda a: (a[..., :2], a[..., :2]), "an image is"),
    ],
)
def test_what_cannot_be_compared_is_refused(photo, change, message):
    for metric in (psnr, ssim):
        with pytest.raises(ValueError, match=message):
            metric(*change(photo))
    with pytest.raises(ValueError, match="leaves nothing"):
        psnr(photo, photo, border=60)
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(photo[:10, :10], photo[:10, :10])


@pytest.mark.parametrize(("dy", "dx"), [(0.0, 0.0), (2.0, -3.0), (0.5, 0.25), (-1.3, 0.7)])
def test_shifted_psnr_sees_past_a_translation(photo, dy, dx):
    """A band-limited picture, moved exactly by the Fourier shift theorem; the metric finds the way back."""
    spectrum = np.fft.fft2(photo / 255.0, axes=(0, 1))
    fy, fx = np.fft.fftfreq(photo.shape[0])[:, None, None], np.fft.fftfreq(photo.shape[1])[None, :, None]
    spectrum[np.broadcast_to(np.hypot(fy, fx) > 0.2, spectrum.shape)] = 0
    truth = np.fft.ifft2(spectrum, axes=(0, 1)).real.astype(np.float32)
    moved = np.fft.ifft2(spectrum * np.exp(-2j * np.pi * (fy * dy + fx * dx)), axes=(0, 1)).real.astype(np.float32)
    found = psnr_shifted(moved, truth, border=8)
    assert (found.dy, found.dx) == pytest.approx((-dy, -dx), abs=0.04)
    assert found.psnr > 45
    assert found.psnr >= psnr(moved, truth, border=8)


def test_shifted_psnr_is_never_below_the_plain_one(photo, noisy):
    assert psnr_shifted(noisy, photo, border=4).psnr >= psnr(noisy, photo, border=4)


def test_kernel_error_looks_past_a_shift_and_not_past_a_turn():
    kernels = benchmark_kernels(25)
    for kernel in kernels:
        same = compare_kernels(kernel[2:-2, 2:-2], kernel)
        assert same.correlation > 0.999
        assert same.psnr > 45
    motion = kernels[9]
    moved = shift(motion[None], np.array([2.0, -1.0]))[0]
    found = compare_kernels(moved, motion)
    assert (found.dy, found.dx) == pytest.approx((-2, 1), abs=0.03)
    assert found.correlation > 0.999
    assert compare_kernels(motion[::-1, ::-1], motion).correlation < 0.9
    assert compare_kernels(kernels[0], motion).psnr < found.psnr - 20
