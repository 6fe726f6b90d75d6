"""Kernels in their place: the centre of mass on the middle pixel, and nothing else about them changed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels_bank import sample_gaussian, sample_motion
from kernels_bank.centring import centroid
from kernels_bank.centring import recentre as recentre_exactly
from pipeline.degrade import degrade
from pipeline.model.centring import recentre
from pipeline.model.kernel_step import refine_kernel


def philox(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([3, 7, 25]))
def test_it_is_the_shift_that_banks_are_recentred_with(seed: int, size: int) -> None:
    kernels = philox(seed).random((4, size, size)) ** 4
    kernels /= kernels.sum((1, 2), keepdims=True)
    found = recentre(torch.from_numpy(kernels)).numpy()
    np.testing.assert_allclose(found, recentre_exactly(kernels), atol=1e-12)


def test_a_kernel_far_from_its_place_comes_back() -> None:
    kernel = torch.from_numpy(sample_motion(8, 15, rng=philox(0))).double()
    moved = torch.nn.functional.pad(kernel, (5,) * 4).roll((4, -3), (-2, -1))
    torch.testing.assert_close(recentre(moved)[:, 5:-5, 5:-5], kernel, atol=1e-6, rtol=0)


def test_a_centred_kernel_stays_as_it_is() -> None:
    kernels = torch.from_numpy(np.concatenate([f(4, 25, rng=philox(1)) for f in (sample_motion, sample_gaussian)]))
    torch.testing.assert_close(recentre(kernels), kernels, atol=1e-6, rtol=0)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_refining_ends_where_the_kernel_belongs(scale: int) -> None:
    """From a start that is two pixels off, with a restorer that shifts the image as the kernel asks it to."""
    truth = torch.from_numpy(sample_motion(1, 15, rng=philox(2), extent=(6.0, 8.0)))
    torch.manual_seed(0)
    sharp = (torch.randn(1, 3, 144, 144).cumsum(-1) > 0).float()
    lr = degrade(sharp, truth, scale)

    def restore(kernel: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        off = centroid(kernel.numpy())[0].round().astype(int)
        return sharp.roll((-off[0], -off[1]), (-2, -1))

    start = torch.from_numpy(sample_gaussian(1, 15, rng=philox(3), sigma=(1.5, 1.5))).roll((2, -2), (-2, -1))
    *_, found = refine_kernel(restore, lr, start, scale, torch.zeros(1), steps=3)
    assert np.abs(centroid(found.numpy())).max() < 0.2
    assert float((found - truth).abs().sum()) < 0.2
