"""The centring rule: where kernels lie, how they move, and comparison that looks past the shift."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from kernels_bank import benchmark_kernels, sample_disk, sample_gaussian, sample_motion
from kernels_bank.centring import align_to_block_centres, centroid, correlation, recentre, shift
from kernels_bank.runtime.errors import BadRequestError


@pytest.fixture(scope="module")
def kernels() -> np.ndarray:
    """Motion kernels in the middle of a field with room around."""
    return np.pad(sample_motion(20, 15, rng=np.random.default_rng(0)), ((0, 0), (5, 5), (5, 5)))


def test_the_rule_holds_for_every_family():
    """Gaussians and disks have their centre on the middle pixel, motion kernels their centre of mass."""
    for sample in (sample_gaussian, sample_motion, sample_disk):
        np.testing.assert_allclose(centroid(sample(200, rng=np.random.default_rng(1))), 0, atol=1e-6)
    noisy = sample_gaussian(50, rng=np.random.default_rng(1), noise=0.25)
    assert np.abs(centroid(noisy)).max() < 0.2  # noise moves the mass a little; the centre stays where it was


def test_centroid_counts_rows_down_and_columns_right():
    kernel = np.zeros((2, 5, 5), np.float32)
    kernel[0, 4, 2] = 1  # two rows below the middle
    kernel[1, 2, 0] = 0.5  # two columns left; the sum does not matter
    np.testing.assert_array_equal(centroid(kernel), [[2, 0], [0, -2]])


@settings(max_examples=50)
@given(st.floats(-4, 4), st.floats(-4, 4))
def test_shift_moves_the_centre_of_mass_by_just_that(rows, columns):
    kernel = np.pad(sample_motion(3, 15, rng=np.random.default_rng(2)), ((0, 0), (5, 5), (5, 5))).astype(np.float64)
    moved = shift(kernel, np.array([rows, columns]))
    np.testing.assert_allclose(centroid(moved), centroid(kernel) + np.array([rows, columns]), atol=1e-9)
    np.testing.assert_allclose(moved.sum((1, 2)), 1, atol=1e-12)
    assert (moved >= 0).all()


def test_shift_equals_scipys_linear_interpolation(kernels):
    by = np.array([1.25, -2.6])
    for moved, kernel in zip(shift(kernels.astype(np.float64), by), kernels.astype(np.float64), strict=True):
        np.testing.assert_allclose(moved, ndimage.shift(kernel, by, order=1, mode="grid-constant"), atol=1e-9)


def test_whole_pixels_move_without_loss(kernels):
    np.testing.assert_array_equal(shift(kernels, np.array([0, 3])), np.roll(kernels, 3, axis=2))
    there = shift(kernels, np.array([2.0, -3.0]))
    np.testing.assert_array_equal(shift(there, np.array([-2.0, 3.0])), kernels)


def test_what_leaves_the_window_is_lost_and_the_rest_is_a_kernel():
    kernel = np.zeros((1, 5, 5))
    kernel[0, 2, 2], kernel[0, 0, 0] = 0.75, 0.25
    moved = shift(kernel, np.array([-1.0, 0.0]))
    assert moved[0, 1, 2] == 1
    with pytest.raises(BadRequestError, match="shifted out of its window"):
        shift(kernel, np.array([-7.0, 0.0]))


def test_each_kernel_may_have_its_own_shift(kernels):
    by = np.random.default_rng(3).uniform(-2, 2, (20, 2))
    np.testing.assert_array_equal(shift(kernels, by)[7], shift(kernels[7:8], by[7])[0])


def test_recentring_undoes_any_shift(kernels):
    moved = shift(kernels, np.random.default_rng(4).uniform(-4, 4, (20, 2)))
    exact, whole = recentre(moved), recentre(moved, subpixel=False)
    assert exact.dtype == np.float32
    np.testing.assert_allclose(centroid(exact), 0, atol=1e-6)
    assert np.abs(centroid(whole)).max() <= 0.5 + 1e-6
    # Whole pixels lose no sharpness: the same values, elsewhere.
    np.testing.assert_allclose(np.sort(whole.reshape(20, -1)), np.sort(moved.reshape(20, -1)), rtol=1e-5)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_alignment_puts_the_kept_pixel_at_its_blocks_centre(scale):
    """A ramp, blurred and decimated to the upper-left pixels, then holds the block's mean, as a bicubic one does."""
    kernel = align_to_block_centres(sample_gaussian(1, 15, rng=np.random.default_rng(5), sigma=(1, 1.2)), scale)
    np.testing.assert_allclose(centroid(kernel), -(scale - 1) / 2, atol=1e-5)
    rows, columns = np.mgrid[:48, :48].astype(np.float64)
    ramp = 3 * rows + columns
    kept = ndimage.convolve(ramp, kernel[0].astype(np.float64), mode="wrap")[::scale, ::scale]
    blocks = ramp.reshape(48 // scale, scale, 48 // scale, scale).mean((1, 3))
    inside = slice(8 // scale + 1, 40 // scale - 1)
    np.testing.assert_allclose(kept[inside, inside], blocks[inside, inside], atol=1e-3)


def test_correlation_sees_past_shift_and_orientation(kernels):
    moved = shift(kernels, np.array([3.0, -2.0]))
    np.testing.assert_allclose(np.diag(correlation(kernels, moved)), 1, atol=1e-5)
    turned = np.rot90(moved, axes=(1, 2))[:, ::-1]
    assert np.diag(correlation(kernels, turned)).min() < 0.9
    np.testing.assert_allclose(np.diag(correlation(kernels, turned, orientations=True)), 1, atol=1e-5)


def test_correlation_equals_the_search_over_all_shifts():
    rng = np.random.default_rng(6)
    a, b = sample_motion(70, 9, rng=rng), sample_motion(2, 7, rng=rng)
    found = correlation(a, b)
    assert found.shape == (70, 2)
    field = 15  # 9 + 7 - 1, which is a fast length
    for i in (0, 69):
        for j in range(2):
            still, moving = np.zeros((2, field, field))
            still[:9, :9], moving[:7, :7] = a[i], b[j]
            best = max(
                np.corrcoef(still.ravel(), np.roll(moving, (dy, dx), (0, 1)).ravel())[0, 1]
                for dy in range(field)
                for dx in range(field)
            )
            assert found[i, j] == pytest.approx(best, abs=1e-5)


def test_the_bank_covers_measured_motion(shared):
    """A cut of what docs/kernels.md reports for 20,000 kernels; four of 12 known, eight of Levin et al. 2009."""
    from kernels_bank import load_kernels

    bank = sample_motion(5000, rng=np.random.Generator(np.random.Philox(0)))
    benchmark = load_kernels(shared / "data" / "kernels_12.mat")[8:]
    best = correlation(bank, benchmark, orientations=True).max(0)
    # The public generator of USRNet's training code, as many kernels: 0.70, 0.84, 0.78, 0.73.
    assert (best > [0.70, 0.84, 0.82, 0.70]).all()
    levin = load_kernels(shared / "data" / "Levin09.mat")
    assert correlation(bank[:2000], levin[:, 3:24, 3:24], orientations=True).max(0).min() > 0.6


def test_published_benchmark_gaussians_are_ours(shared):
    """Kernels 1 to 8 of the published set, which ours shares the settings of."""
    from kernels_bank import load_kernels

    published = load_kernels(shared / "data" / "kernels_12.mat")
    np.testing.assert_allclose(benchmark_kernels(25)[:8], published[:8], atol=2e-5)


@pytest.mark.parametrize("kernel", [np.zeros((1, 5, 5)), np.full((1, 5, 5), np.nan)])
def test_what_has_no_positive_sum_has_no_centre(kernel):
    with pytest.raises(BadRequestError, match="a kernel has no positive sum"), np.errstate(invalid="ignore"):
        shift(kernel, np.zeros(2))


def test_kernels_of_integers_are_not_shifted():
    """Their sum is 1 after it, so all values would be cut to 0."""
    with pytest.raises(BadRequestError, match="floating point is expected, got int64"):
        recentre(np.arange(25).reshape(1, 5, 5))
