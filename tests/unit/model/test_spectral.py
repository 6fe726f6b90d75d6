"""The spectral initial kernel: what its features show, what they ignore, and where its answer turns with the image."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels_bank import benchmark_kernels
from pipeline.degrade import degrade, quantize
from pipeline.model import BlindUSRNet
from pipeline.model.spectral import SpectralInit
from pipeline.model.weights import load_model
from pipeline.model_config import ModelConfig, RestorerConfig
from pipeline.shipped import shipped_folder
from tests.helpers.hard_pictures import photograph


@pytest.mark.parametrize(("height", "width"), [(8, 9), (31, 70), (64, 33)])
def test_spectral_start_takes_any_size_and_ignores_brightness(height, width):
    torch.manual_seed(0)
    spectral = SpectralInit((2, 3), 6).eval()
    torch.nn.init.normal_(spectral.by_scale, std=0.1)  # new ones tell no scale from another
    lr = torch.rand(2, 3, height, width)
    code, shares, _ = spectral(lr, 2, torch.zeros(2))
    assert shares is None
    assert code.shape == (2, 6)
    torch.testing.assert_close(spectral(lr + 0.1, 2, torch.zeros(2))[0], code, atol=1e-4, rtol=1e-3)
    for scale, sigma in ((3, 0.0), (2, 0.1)):
        assert not torch.equal(spectral(lr, scale, torch.full((2,), sigma))[0], code)


def test_spectral_features_show_the_blur_and_not_its_direction():
    """Blurring one axis lowers that axis's high frequencies; mirroring the image changes nothing there."""
    spectral = SpectralInit((2,), 4)
    sharp = torch.rand(1, 3, 64, 64)
    blurred = (sharp + sharp.roll(1, -1) + sharp.roll(-1, -1)) / 3
    plain, soft = (spectral.features(image, torch.zeros(1)).reshape(3, 32, 17)[0] for image in (sharp, blurred))
    assert (soft - plain)[:, 9:13].mean() < -1
    assert (soft - plain)[9:24, :3].mean() > 0
    mirrored = spectral.features(blurred.flip(-2, -1), torch.zeros(1)).reshape(3, 32, 17)[0]
    torch.testing.assert_close(mirrored, soft, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("turn", [lambda x: x.flip(-1), lambda x: x.mT, lambda x: x.rot90(1, (-2, -1))])
def test_a_turned_image_has_the_turned_initial_kernel(codec, turn):
    torch.manual_seed(0)
    net = BlindUSRNet(ModelConfig(restorer=RestorerConfig(widths=(2, 2, 2, 2))), codec).eval()
    assert net.spectral is not None
    with torch.no_grad():  # far from its small first weights, so that the views disagree
        net.spectral.rest[-1].weight.mul_(20)
    lr = torch.rand(2, 3, 45, 30)  # smaller than a window one way, and no whole number of them the other
    kernel, code, *_ = net.initial(lr, 2, 0.01)
    torch.testing.assert_close(net.initial(turn(lr), 2, 0.01)[0], turn(kernel), atol=1e-4, rtol=1e-2)
    assert float((turn(kernel) - kernel).detach().abs().sum((1, 2)).min()) > 0.01
    torch.testing.assert_close(code, net.encode(kernel))


def test_features_that_are_there_already_are_answered_the_same():
    torch.manual_seed(0)
    spectral, lr = SpectralInit((2, 3), 6, reductions=True).eval(), torch.rand(2, 3, 40, 90)
    sigma = torch.tensor([0.0, 0.02])
    again = spectral.answer(spectral.features(lr, sigma), 3, sigma, torch.full((2,), 60.0))
    for one, other in zip(spectral(lr, 3, sigma), again, strict=True):
        torch.testing.assert_close(one, other)


@given(st.integers(0, 6), st.integers(0, 6), st.sampled_from([0.0, 0.01, 0.03]), st.integers(0, 99))
def test_windows_without_texture_change_nothing(black, smooth, sigma, seed):
    """Neither windows of one colour nor windows of rounding and noise alone, in whatever order, and however many."""
    spectral, random = SpectralInit((2,), 4), torch.Generator().manual_seed(seed)
    textured = 10 * (sigma**2 + 1e-3) * (0.5 + torch.rand(1, 5, 32, 17, generator=random))
    faint = (0.4 * sigma**2 + 1e-6) * (0.5 + torch.rand(1, smooth, 32, 17, generator=random))
    faint[..., 0, 1] = 1.0  # slow changes, as of a sky
    every = torch.cat((textured, torch.zeros(1, black, 32, 17), faint), 1)
    every = every[:, torch.randperm(every.shape[1], generator=random)]
    level = torch.tensor([sigma])
    torch.testing.assert_close(spectral.of_power(every, level), spectral.of_power(textured, level))


def test_an_image_without_any_texture_still_has_features():
    spectral = SpectralInit((2,), 4)
    lr = torch.stack((torch.zeros(3, 64, 64), torch.rand(3, 64, 64)))
    features = spectral.features(lr, torch.zeros(2))
    assert features.isfinite().all()
    alone = spectral.features(lr[1:], torch.zeros(1))
    torch.testing.assert_close(features[1:], alone)  # each image for itself


@pytest.mark.parametrize("model", ["shipped:blind-sr-x2", "shipped:blind-sr", "shipped:blind-sr-camera"])
@pytest.mark.parametrize("colour", [0, 255])
def test_a_black_or_white_area_does_not_change_the_kernel(model, colour):
    """It made the kernel of `blind-sr` 1.7 times as wide in variance here."""
    network = load_model(shipped_folder(model))
    assert isinstance(network, BlindUSRNet)
    kernel = torch.from_numpy(benchmark_kernels(25))[2:3]
    whole, variances = photograph("astronaut", 0, 0, 384), []
    half = whole.copy()
    half[:, :192] = colour
    for image in (whole, half):
        hr = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        lr = quantize(degrade(hr, kernel, 2), "round").clamp(0, 1)
        with torch.inference_mode():
            variances.append(float(_variance(network.initial_kernel(lr, 2, 0.0))))
    assert abs(np.log(variances[1] / variances[0])) < 0.35, variances


def _variance(kernel: torch.Tensor) -> torch.Tensor:
    """Return the variance of kernels (B, k, k), mean of both axes."""
    place = torch.arange(kernel.shape[-1], dtype=kernel.dtype) - kernel.shape[-1] // 2
    return (kernel * (place[:, None] ** 2 + place**2)).sum((-2, -1)) / 2
