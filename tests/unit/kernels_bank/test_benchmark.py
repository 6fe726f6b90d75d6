"""The evaluation kernels never change, so results of different years stay comparable."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from kernels_bank import benchmark_kernels
from kernels_bank.centring import centroid
from kernels_bank.runtime.errors import BadRequestError

DIGEST = "b81c3382b80251098e3ab92c9dc299fdfb2f408c4ecd12072c331405d6bc0803"


def test_their_bytes_never_change():
    kernels = benchmark_kernels(size=25)
    assert (kernels.shape, kernels.dtype) == ((12, 25, 25), np.float32)
    assert hashlib.sha256(kernels.astype("<f4").tobytes()).hexdigest() == DIGEST
    np.testing.assert_array_equal(benchmark_kernels(), kernels)


def test_they_are_four_of_each_kind():
    kernels = benchmark_kernels(25)
    np.testing.assert_allclose(kernels.sum((1, 2)), 1, atol=1e-6)
    np.testing.assert_allclose(centroid(kernels), 0, atol=1e-5)
    turned = np.rot90(kernels, axes=(1, 2))
    difference = np.abs(turned - kernels).max((1, 2)) / kernels.max((1, 2))
    assert (difference[:4] < 1e-6).all()  # isotropic
    assert (difference[4:] > 0.05).all()
    flipped = np.abs(kernels[:, ::-1, ::-1] - kernels).max((1, 2))
    assert (flipped[:8] == 0).all()  # Gaussians
    assert (flipped[8:] > 0.01).all()  # motion


@pytest.mark.parametrize("size", [21, 31])
def test_they_are_the_same_in_any_field(size):
    """Gaussians up to what the smaller window cuts off."""
    kernels, wide = benchmark_kernels(size), benchmark_kernels(41)
    margin = (41 - size) // 2
    middle = wide[:, margin:-margin, margin:-margin]
    np.testing.assert_array_equal(kernels[8:], middle[8:])
    np.testing.assert_allclose(kernels[:8], middle[:8] / middle[:8].sum((1, 2), keepdims=True), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("size", [19, 24, 0, -3])
def test_sizes_that_do_not_hold_them(size):
    with pytest.raises(BadRequestError, match="odd side of at least 21"):
        benchmark_kernels(size)
