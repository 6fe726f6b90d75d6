"""The band of a periodic extension, filled so that a sharp image explains it."""

import numpy as np
import pytest
import torch

from kernels_bank import sample_gaussian
from pipeline.degrade import degrade
from pipeline.inference.boundary import extend_to
from pipeline.inference.fill import _ALPHA, _ROUNDS, explained_band
from pipeline.model import data_step, upsample


def taken(kernel, scale, side=48):
    """A part (side, side, 3) of a larger scene, as cameras take it: nothing about it is periodic."""
    torch.manual_seed(0)
    scene = torch.rand(1, 3, 16, 16).repeat_interleave(8 * scale, -1).repeat_interleave(8 * scale, -2)
    return degrade(scene, kernel, scale)[0, :, 20 : 20 + side, 20 : 20 + side].permute(1, 2, 0).numpy().copy()


@pytest.fixture
def kernel():
    rng = np.random.Generator(np.random.Philox(2))
    return torch.from_numpy(sample_gaussian(1, 15, rng=rng, sigma=(2.0, 2.5)))


def upper_left(seen, size):
    known = np.zeros(size, bool)
    known[:seen, :seen] = True
    return known


def overshoot(torus, kernel, scale):
    """RMS by which the seen part, with the blur all but inverted, leaves [0, 1]: the scene itself does not."""
    y = torch.from_numpy(torus).permute(2, 0, 1)[None].double()
    alpha = torch.full((1, 1, 1, 1), 1e-6, dtype=torch.float64)
    x = data_step(upsample(y, scale, "bicubic"), y, kernel.double(), alpha, scale)[..., : 48 * scale, : 48 * scale]
    return float((x - x.clamp(0, 1)).square().mean().sqrt())


def test_the_inverse_filter_rings_less(kernel):
    smooth = extend_to(taken(kernel, 1), 72, 72)
    filled = explained_band(smooth, upper_left(48, (72, 72)), kernel, 1)
    assert overshoot(filled, kernel, 1) < 0.5 * overshoot(smooth, kernel, 1)


def test_what_the_camera_saw_is_untouched(kernel):
    lr = taken(kernel, 2)
    filled = explained_band(extend_to(lr, 64, 72), upper_left(48, (64, 72)), kernel, 2)
    assert filled.shape == (64, 72, 3)
    assert filled.dtype == np.float32
    np.testing.assert_array_equal(filled[:48, :48], lr)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_it_is_restoring_degrading_and_putting_the_photograph_back(kernel, scale):
    """Against the same rounds with sharp images: the data step, the degradation, and no Fourier transform in sight."""
    known = upper_left(48, (61, 72))
    smooth = extend_to(taken(kernel, scale), 61, 72)
    photograph = torch.from_numpy(smooth).permute(2, 0, 1)[None].double()
    kept, k, alpha = torch.from_numpy(known), kernel.double(), torch.full((1, 1, 1, 1), _ALPHA, dtype=torch.float64)
    x, y = upsample(photograph, scale, "bicubic"), photograph
    ahead = x
    for n in range(_ROUNDS):
        before, x = x, data_step(ahead, y, k, alpha, scale)
        ahead = x + n / (n + 3) * (x - before)
        y = torch.where(kept, photograph, degrade(ahead, k, scale))
    expected = torch.where(kept, photograph, degrade(x, k, scale))[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(explained_band(smooth, known, kernel, scale), expected, atol=2e-4)


def test_an_image_without_a_band_is_itself(kernel):
    lr = taken(kernel, 2)
    assert explained_band(lr, np.ones((48, 48), bool), kernel, 2) is lr


def test_a_periodic_picture_is_its_own_explanation(kernel):
    """Where the band is right already it stays, to what the prior's pull allows: far nearer than a smooth band is."""
    torch.manual_seed(1)
    x = torch.rand(1, 3, 8, 8).repeat_interleave(16, -1).repeat_interleave(16, -2)
    y = degrade(x, kernel, 2)[0].permute(1, 2, 0).numpy().copy()
    band = ~upper_left(48, y.shape[:2])
    filled = explained_band(y, ~band, kernel, 2)
    smooth = extend_to(y[:48, :48].copy(), 64, 64)
    assert np.abs(filled - y)[band].mean() < 0.1 * np.abs(smooth - y)[band].mean()
    assert np.abs(filled - y).mean() < 0.005
