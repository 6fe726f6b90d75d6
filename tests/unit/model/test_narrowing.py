"""A kernel that makes the image ring is narrowed, image by image, until it does not ring or it gets worse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels_bank import sample_motion
from pipeline.degrade import degrade
from pipeline.model import BlindUSRNet
from pipeline.model.gaussian_fit import _covariance, matching_gaussian
from pipeline.model.guard import overshoot
from pipeline.model.initial import Initial
from pipeline.model.narrowing import ALLOWED, narrow, narrower
from pipeline.model.rounds import Round
from pipeline.model.weights import load_model
from pipeline.shipped import shipped_folder
from tests.helpers.hard_pictures import photograph


def gaussian(*variances: float, size: int = 25) -> Tensor:
    """(B, size, size), one for each variance."""
    points = torch.zeros(len(variances), size, size)
    place = torch.arange(size) - size // 2
    square = (place[:, None] ** 2 + place**2).float()
    for kernel, variance in zip(points, variances, strict=True):
        kernel += (-square / 2 / variance).exp()
    return points / points.sum((-2, -1), keepdim=True)


@pytest.mark.parametrize("factor", [0.8, 0.5])
def test_a_narrower_kernel_has_the_share_of_the_variance_and_the_shape(factor: float) -> None:
    motion = torch.from_numpy(sample_motion(4, 25, rng=np.random.default_rng(0))).float()
    for kernel in (gaussian(6.0, 12.0), motion):
        small = narrower(kernel, factor)
        assert bool((small >= 0).all())
        torch.testing.assert_close(small.sum((-2, -1)), torch.ones(len(kernel)))
        # Reading between pixels blurs a little.
        torch.testing.assert_close(_covariance(small), factor * _covariance(kernel), atol=0.35, rtol=0.05)
    torch.testing.assert_close(
        narrower(gaussian(9.0), factor), matching_gaussian(gaussian(9.0 * factor)), atol=5e-4, rtol=0
    )


def test_a_turned_kernel_is_narrowed_to_the_turned_one_and_a_point_stays_a_point() -> None:
    kernel = torch.from_numpy(sample_motion(2, 25, rng=np.random.default_rng(0))).float()
    turned = narrower(kernel.rot90(1, (-2, -1)), 0.64)
    torch.testing.assert_close(turned, narrower(kernel, 0.64).rot90(1, (-2, -1)), atol=1e-6, rtol=0)
    point = torch.zeros(1, 25, 25)
    point[0, 12, 12] = 1
    torch.testing.assert_close(narrower(point, 0.2), point)


def rounds(level: Tensor, blur: Tensor) -> Round:
    """An image of one pixel, as far above 1 as `level` says."""
    return Round((1 + level)[:, None, None, None].expand(-1, 3, 1, 1), blur, torch.zeros(len(blur), 2), blur)


def above_one(sr: Tensor) -> Tensor:
    return sr[:, 0, 0, 0] - 1


def test_each_image_stops_where_it_rings_no_more_or_worse_whatever_its_neighbours_do() -> None:
    # By the number of times that a kernel was narrowed: falls below what is allowed; rises; falls, then rises; is fine.
    levels = torch.tensor(
        [
            [0.05, 0.03, 0.01, 0.002, 0.001],
            [0.05, 0.06, 0.001, 0.001, 0.001],
            [0.05, 0.03, 0.04, 0.001, 0.001],
            [0.003, 0.001, 0.001, 0.001, 0.001],
            [0.05, 0.03, 0.01, 0.002, 0.001],
        ]
    )
    stands = torch.tensor([True, True, True, True, False])
    blur = gaussian(*[9.0] * 5)

    def walk(images: list[int]) -> tuple[list[float], Round]:
        times = 0

        def restore(narrowed: Tensor) -> Round:
            nonlocal times
            times += 1
            return rounds(levels[images, min(times, 4)], narrowed)

        first = rounds(levels[images, 0], blur[images])
        out = narrow(first, stands[images], restore=restore, judge=above_one)
        return above_one(out.sr).tolist(), out

    together, out = walk([0, 1, 2, 3, 4])
    assert together == pytest.approx([0.002, 0.05, 0.03, 0.003, 0.05], abs=1e-6)
    assert [walk([image])[0][0] for image in range(5)] == together
    torch.testing.assert_close(out.blur[0], narrower(blur[:1], 0.8**3)[0])
    assert all(torch.equal(out.blur[image], blur[image]) for image in (1, 3, 4))


def test_overshoot_is_the_rms_of_what_lies_outside_the_range_in_the_observed_part() -> None:
    sr = torch.full((1, 3, 8, 8), 0.5)
    sr[0, :, 2:6, 2:6] = 1.2
    sr[0, :, 7, 7] = -5.0
    assert float(overshoot(sr, 1)) == pytest.approx(((16 * 0.2**2 + 25) / 64) ** 0.5)
    assert float(overshoot(sr, 2, (3, 3))) == pytest.approx((16 * 0.2**2 / 36) ** 0.5)
    assert float(overshoot(sr, 2, (4, 4), border=1)) == pytest.approx(0.2)


@pytest.mark.parametrize("scale", [2, 3])
def test_a_kernel_that_is_too_wide_is_narrowed_and_the_right_one_is_kept(
    scale: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("skimage")
    model = load_model(shipped_folder("shipped:blind-sr"))
    assert isinstance(model, BlindUSRNet)
    model.eval()
    monkeypatch.setattr(model, "settled", lambda *_: torch.ones(1, dtype=torch.bool))  # no kernel steps
    hr = torch.from_numpy(photograph("astronaut", 20, 150, 144)).permute(2, 0, 1)[None].float() / 255
    lr = degrade(hr, gaussian(2.0), scale)

    def restored(kernel: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        first = Initial(kernel, model.encode(kernel), None, start)
        with torch.inference_mode():
            out = model.infer(lr, scale, 0.0, initial=first)
            assert torch.equal(out.rounds[0].sr, out.sr)
            assert torch.equal(out.rounds[0].kernel, out.kernel)
            return out.sr, model.restore(lr, kernel, scale, 0.0)

    image, plain = restored(gaussian(2.0))
    torch.testing.assert_close(image, plain)
    wide = gaussian(3.6)
    image, plain = restored(wide)
    assert float(overshoot(plain, scale)) > 2 * ALLOWED
    assert float(overshoot(image, scale)) <= ALLOWED
    assert psnr(image, hr) > psnr(plain, hr) + 3
    torch.testing.assert_close(*restored(wide, start=wide))  # of a net that errs on the narrow side


def psnr(image: Tensor, truth: Tensor) -> float:
    return float(-10 * (image - truth).square().mean().log10())
