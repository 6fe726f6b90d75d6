"""What the code loses: PSNR of a kernel, the reported lengths, and pictures of any mixture of families."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from kernels_bank import KernelBankSpec, KernelCodec
from kernels_bank.codec_quality import decoded_psnr, draw_samples, kernel_psnr, measure
from kernels_bank.preview import PICTURES, write_previews
from kernels_bank.runtime import storage


def test_psnr_is_relative_to_the_kernels_peak():
    kernel = np.zeros((1, 5, 5))
    kernel[0, 2, 2] = 0.5
    estimate = kernel + 0.005  # 1% of the peak in every pixel
    np.testing.assert_allclose(kernel_psnr(estimate, kernel), 40)
    np.testing.assert_allclose(kernel_psnr(kernel, kernel), 120)
    np.testing.assert_allclose(kernel_psnr(estimate / 7, kernel / 7), 40)


def test_losses_are_those_of_the_shorter_codec():
    spec = KernelBankSpec(gaussian=600, motion=600, size=15, components=24)
    samples = draw_samples(spec)
    assert {family: len(kernels) for family, (kernels, _) in samples.items()} == {"gaussian": 600, "motion": 600}
    everything = np.concatenate([kernels for kernels, _ in samples.values()])
    full = KernelCodec.fit(everything, components=225)
    losses = measure(samples, full, 37)
    assert [loss.components for loss in losses] == [10, 24, 37, 64, 110]
    for loss in losses:
        short = KernelCodec.fit(everything, components=loss.components)
        assert loss.explained_variance == pytest.approx(short.explained_variance, abs=1e-6)
        for family, (kernels, _) in samples.items():
            assert loss.psnr[family] == pytest.approx(decoded_psnr(kernels, short).mean(), abs=0.01)
    for family in samples:
        values = [loss.psnr[family] for loss in losses]
        assert values == sorted(values)
    assert all(loss.psnr["gaussian"] > loss.psnr["motion"] for loss in losses[:4])


@pytest.mark.parametrize(
    "counts",
    [
        {"gaussian": 3, "motion": 2, "disk": 2, "delta": 1, "size": 9},
        {"gaussian": 2, "motion": 0, "gaussian_reduced": 4, "motion_reduced": 4, "reduction": 3, "size": 13},
        {"gaussian": 0, "motion": 0, "delta": 2, "size": 3},
        {"gaussian": 1, "motion": 0, "size": 5, "sigma": (1.0, 1.0), "isotropic": 1.0},
        {"gaussian": 0, "motion": 40, "size": 7, "memory": (0.5, 0.5)},
    ],
    ids=["few of all", "composites", "only delta", "one kernel", "one memory"],
)
def test_any_mixture_has_its_pictures(tmp_path, counts):
    spec = KernelBankSpec(**counts)
    samples = draw_samples(spec)
    full = KernelCodec.fit(np.concatenate([kernels for kernels, _ in samples.values()]), components=spec.size**2)
    losses = measure(samples, full, kept=2)
    write_previews(samples, full, 2, losses, str(tmp_path))
    for name in PICTURES:
        with Image.open(io.BytesIO(storage.read_bytes(tmp_path / name))) as picture:
            assert len(picture.convert("L").getcolors(256)) > 20  # something is drawn
