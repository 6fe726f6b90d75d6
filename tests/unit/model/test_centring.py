"""Kernels in their place: the centre of mass within half a pixel of the middle, and nothing else changed."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels_bank import sample_gaussian, sample_motion
from kernels_bank.centring import recentre as in_numpy
from pipeline.model.centring import recentre


def philox(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([3, 7, 25]))
def test_it_is_the_shift_that_banks_are_recentred_with(seed: int, size: int) -> None:
    kernels = philox(seed).random((4, size, size)) ** 4
    kernels /= kernels.sum((1, 2), keepdims=True)
    found = recentre(torch.from_numpy(kernels)).numpy()
    np.testing.assert_allclose(found, in_numpy(kernels, subpixel=False), atol=1e-12)


def test_a_kernel_far_from_its_place_comes_back() -> None:
    kernel = torch.from_numpy(sample_motion(8, 15, rng=philox(0))).double()
    moved = torch.nn.functional.pad(kernel, (5,) * 4).roll((4, -3), (-2, -1))
    torch.testing.assert_close(recentre(moved)[:, 5:-5, 5:-5], kernel, atol=1e-6, rtol=0)


def test_a_centred_kernel_stays_as_it_is() -> None:
    kernels = torch.from_numpy(np.concatenate([f(4, 25, rng=philox(1)) for f in (sample_motion, sample_gaussian)]))
    torch.testing.assert_close(recentre(kernels), kernels, atol=1e-6, rtol=0)
