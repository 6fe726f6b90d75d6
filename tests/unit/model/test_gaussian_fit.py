"""The Gaussian behind a kernel: laws, against Gaussians drawn by the bank's own sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels_bank import sample_gaussian, sample_motion
from pipeline.model.gaussian_fit import NEAR, is_nearly_gaussian, matching_gaussian, snap_to_gaussian


def apart(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).abs().sum((-2, -1))


def gaussians(count: int = 64, sigma: tuple[float, float] = (0.4, 4.5)) -> torch.Tensor:
    rng = np.random.Generator(np.random.Philox(0))
    return torch.from_numpy(sample_gaussian(count, 25, rng=rng, sigma=sigma)).float()


def test_a_gaussian_of_any_width_and_turn_is_its_own():
    kernel = gaussians(500)
    assert float(apart(matching_gaussian(kernel), kernel).max()) < 0.05
    assert float(apart(matching_gaussian(kernel), kernel).mean()) < 0.005


def test_snapping_takes_the_dirt_off_a_gaussian():
    """Noise of a tenth of the kernel's mass goes; what is left of the error is the width's."""
    clean = gaussians()
    dirt = torch.rand(clean.shape, generator=torch.Generator().manual_seed(0)) * clean
    dirty = 0.9 * clean + 0.1 * dirt / dirt.sum((-2, -1), keepdim=True)
    assert float(apart(dirty, clean).mean()) > 3 * float(apart(snap_to_gaussian(dirty), clean).mean())


def test_what_is_far_from_every_gaussian_stays_bit_for_bit():
    rng = np.random.Generator(np.random.Philox(1))
    motion = torch.from_numpy(sample_motion(32, 25, rng=rng, extent=(10.0, 20.0))).float()
    far = apart(matching_gaussian(motion), motion) > NEAR
    assert torch.equal(is_nearly_gaussian(motion), ~far)
    assert int(far.sum()) > 28
    assert torch.equal(snap_to_gaussian(motion)[far], motion[far])


def test_snapping_again_changes_nothing():
    once = snap_to_gaussian(gaussians(sigma=(0.6, 3.0)))
    torch.testing.assert_close(snap_to_gaussian(once), once, atol=1e-4, rtol=0)


@pytest.mark.parametrize("turn", [lambda k: k.flip(-1), lambda k: k.mT, lambda k: k.rot90(1, (-2, -1))])
def test_it_turns_with_the_kernel(turn):
    kernel = gaussians() * torch.rand(64, 25, 25)
    kernel = kernel / kernel.sum((-2, -1), keepdim=True)
    torch.testing.assert_close(matching_gaussian(turn(kernel)), turn(matching_gaussian(kernel)), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("size", [3, 11, 31])
def test_a_point_and_a_flat_kernel_give_finite_kernels_of_sum_one(size):
    point = torch.zeros(2, size, size)
    point[0, size // 2, size // 2] = 1
    point[1] = 1 / size**2
    found = matching_gaussian(point)
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.sum((-2, -1)), torch.ones(2))
    assert float(found[0, size // 2, size // 2]) > 0.99
