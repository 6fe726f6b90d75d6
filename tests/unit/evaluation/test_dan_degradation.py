"""DAN's protocol against SciPy's correlation and Pillow's bicubic, and the kernel that stands for both."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage import data

from kernels_bank import benchmark_kernels
from pipeline.degrade import degrade
from pipeline.evaluation.cases import BICUBIC, NONBLIND, crop_hr, make_lr, measure, restore_all
from pipeline.evaluation.dan_degradation import degrade_dan, equivalent_kernel, gaussian8
from pipeline.evaluation.protocol import PROTOCOLS
from pipeline.inference import Restorer

DAN = PROTOCOLS["dan-gaussian8"]
ROOM = 48  # a multiple of every scale, wider than the widest bicubic filter


@pytest.fixture(scope="module")
def hr() -> np.ndarray:
    return data.coffee()[40:136, 60:180]


def oracle(hr: np.ndarray, kernel: np.ndarray, scale: int) -> np.ndarray:
    """SciPy's correlation over mirrored edges, then Pillow's bicubic of every channel with mirrored room around it."""
    blurred = ndimage.correlate(hr / 255, kernel.astype(np.float64)[..., None], mode="mirror")
    roomy = np.pad(blurred, ((ROOM, ROOM), (ROOM, ROOM), (0, 0)), mode="symmetric").astype(np.float32)
    size = roomy.shape[1] // scale, roomy.shape[0] // scale
    channels = np.moveaxis(roomy, 2, 0)
    small = [np.asarray(Image.fromarray(c.copy()).resize(size, Image.Resampling.BICUBIC)) for c in channels]
    cut = ROOM // scale
    return np.stack(small, -1)[cut:-cut, cut:-cut]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_degradation_is_scipys_correlation_and_pillows_bicubic(hr, scale):
    for kernel in (gaussian8((1.8, 3.2))[7], benchmark_kernels()[9]):
        np.testing.assert_allclose(degrade_dan(hr / 255, kernel, scale), oracle(hr, kernel, scale), atol=2e-6)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_lr_image_is_rounded_to_8_bit(hr, scale):
    kernel = gaussian8(DAN.gaussian_widths[scale])[3]
    lr = make_lr(hr, kernel, scale, 0.0, DAN) * 255
    np.testing.assert_allclose(lr, lr.round(), atol=1e-4)
    # Pillow's float32 may fall on the other side of a half.
    different = np.abs(lr - (oracle(hr, kernel, scale).clip(0, 1) * 255).round())
    assert (different > 0.5).mean() < 1e-3


def test_kernels_and_borders_are_those_of_the_published_sets():
    assert {s: DAN.gaussian_widths[s] for s in (2, 3, 4)} == {2: (0.8, 1.6), 3: (1.35, 2.4), 4: (1.8, 3.2)}
    kernels = DAN.kernels(4)
    assert kernels.shape == (8, 21, 21)
    line = np.arange(-10, 11)
    widths = np.sqrt((kernels * line[:, None] ** 2).sum((1, 2)))
    np.testing.assert_allclose(widths[:3], [1.8, 2.0, 2.2], atol=2e-3)
    np.testing.assert_allclose(kernels.sum((1, 2)), 1, atol=1e-6)
    assert [DAN.border_pixels(s) for s in (2, 3, 4)] == [2, 3, 4]
    assert DAN.headline == "psnr_y"


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_equivalent_kernel_does_the_same_in_our_degradation(hr, scale):
    """Inside, where mirrored and wrapped edges do not reach; also of a kernel without symmetry."""
    kernel = benchmark_kernels()[9]
    ours = equivalent_kernel(kernel, scale)
    image = torch.from_numpy(hr / 255).permute(2, 0, 1)[None]
    lr = degrade(image, torch.from_numpy(ours).double()[None], scale)[0].permute(1, 2, 0).numpy()
    edge = ours.shape[0] // (2 * scale) + 1
    inside = slice(edge, -edge)
    assert lr[inside, inside].size > 300
    np.testing.assert_allclose(lr[inside, inside], degrade_dan(hr / 255, kernel, scale)[inside, inside], atol=1e-6)
    place = np.arange(ours.shape[0]) - ours.shape[0] // 2
    centroid = (ours.sum(1) * place).sum() + (kernel.sum(1) * (np.arange(25) - 12)).sum()
    assert centroid == pytest.approx(-(scale - 1) / 2, abs=1e-4)


def test_published_weights_restore_it_far_better_than_bicubic(shared):
    """The restorer gets the equivalent kernel; a kernel off by its (s - 1) / 2 pixels would cost it decibels."""
    model = Restorer.load(shared / "data" / "usrnet_tiny.pth")
    photograph = data.coffee()[:240, :320]
    image = crop_hr(photograph, 2, DAN)
    kernel = DAN.kernels(2)[4]
    lr = make_lr(image, kernel, 2, 0.0, DAN)
    told = DAN.assumed_kernel(kernel, 2)
    found = restore_all(lr, told, 2, 0.0, {NONBLIND: model}, DAN)
    assert set(found) == {BICUBIC, NONBLIND}
    values = {name: measure(estimate, image, lr, told, 2, DAN) for name, estimate in found.items()}
    assert values[NONBLIND].psnr_y > values[BICUBIC].psnr_y + 2
    assert values[NONBLIND].lr_residual < 0.004
