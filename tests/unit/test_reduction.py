"""A reduction is a kernel: what MATLAB, Pillow and a camera's pixel do to a picture, on both grids."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kernels_bank import sample_gaussian, sample_motion
from kernels_bank.centring import centroid
from kernels_bank.reduction import REDUCTIONS, offset, reduction_line, shift_line
from pipeline.degrade import degrade
from pipeline.evaluation.dan_degradation import equivalent_kernel, gaussian8
from pipeline.inference.comparison import upsample
from pipeline.model.reducer import Reducer
from pipeline.reduction import compose, one_hot, place
from pipeline.seeds import rng

SCALES = [2, 3, 4]
GRIDS = ["corner", "centre"]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    ("reduction", "filter_of_pillow"),
    [("area", Image.Resampling.BOX), ("bicubic", Image.Resampling.BICUBIC), ("lanczos", Image.Resampling.LANCZOS)],
)
def test_a_picture_reduced_by_pillow_is_a_convolution_and_a_decimation(scale, reduction, filter_of_pillow):
    picture = np.random.default_rng(0).random((24 * scale, 24 * scale)).astype(np.float32)
    line = reduction_line(reduction, scale, "centre")
    kernel = torch.from_numpy(np.outer(line, line).astype(np.float32))[None]
    found = degrade(torch.from_numpy(picture)[None, None], kernel, scale)[0, 0].numpy()
    expected = np.asarray(Image.fromarray(picture).resize((24, 24), filter_of_pillow))
    np.testing.assert_allclose(found[4:-4, 4:-4], expected[4:-4, 4:-4], atol=2e-6)


@pytest.mark.parametrize("scale", SCALES)
def test_the_composite_of_dans_benchmark(scale):
    kernel = gaussian8((1.0, 2.0))[3]
    expected = equivalent_kernel(kernel, scale)
    blur = torch.from_numpy(np.pad(kernel, (expected.shape[0] - kernel.shape[0]) // 2))[None]
    found = compose(blur, one_hot(["bicubic"]), scale, "centre")[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("scale", [1, *SCALES])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_line_sums_to_one_about_its_grid(reduction, scale, grid):
    line = reduction_line(reduction, scale, grid)
    place_ = np.arange(len(line)) - len(line) // 2
    assert len(line) % 2 == 1
    assert line.sum() == pytest.approx(1, abs=1e-12)
    assert (line * place_).sum() == pytest.approx(-offset(scale, grid), abs=0.02)
    assert (reduction in {"bicubic", "lanczos"} and scale > 1) or grid == "centre" or line.min() > -0.1


def test_direct_decimation_in_the_corner_changes_nothing():
    blur = torch.from_numpy(sample_motion(3, 15, rng=rng(0, epoch=0, key="k", purpose="test")))
    for scale in SCALES:
        composite = compose(blur, one_hot(["direct"] * 3), scale, "corner")
        torch.testing.assert_close(composite, blur, atol=1e-7, rtol=0)
        assert Reducer(None, scale, "corner").compose(blur) is blur


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("scale", SCALES)
def test_a_mixture_of_reductions_is_the_mean_of_its_composites(scale, grid):
    blur = torch.from_numpy(sample_gaussian(1, 25, rng=rng(0, epoch=0, key="g", purpose="test"), sigma=(1.0, 2.0)))
    shares = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    each = compose(blur.expand(4, -1, -1), torch.eye(4), scale, grid)
    expected = (shares[0, :, None, None] * each).sum(0)
    torch.testing.assert_close(compose(blur, shares, scale, grid)[0], expected / expected.sum(), atol=2e-4, rtol=0)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("scale", SCALES)
def test_reducing_the_image_or_the_blur_is_the_same(scale, grid):
    """(x (*) r) (*) k = x (*) (k (*) r): so the blur alone can be estimated from the reduced image."""
    blur = torch.zeros(2, 41, 41, dtype=torch.float64)
    blur[:, 16:25, 16:25] = torch.rand(2, 9, 9, dtype=torch.float64)
    blur /= blur.sum((-2, -1), keepdim=True)
    reducer = Reducer(torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.2, 0.0, 0.0, 0.8]], dtype=torch.float64), scale, grid)
    x = torch.rand(2, 3, 12 * scale, 16 * scale, dtype=torch.float64)
    if min(x.shape[-2:]) < 41:
        x = torch.rand(2, 3, 24 * scale, 24 * scale, dtype=torch.float64)
    expected = degrade(x, reducer.compose(blur), scale)
    torch.testing.assert_close(degrade(reducer.reduce(x), blur, scale), expected, atol=1e-6, rtol=0)


@given(by=st.floats(-3, 3), seed=st.integers(0, 99))
def test_a_shift_moves_the_centroid_and_keeps_the_sum(by, seed):
    smooth = np.convolve(np.random.default_rng(seed).random(9), np.hanning(9))
    moved = shift_line(smooth, by)
    lines = [np.arange(len(line)) - len(line) // 2 for line in (smooth, moved)]
    before, after = ((line * values).sum() / values.sum() for line, values in zip(lines, (smooth, moved), strict=True))
    assert moved.sum() == pytest.approx(smooth.sum())
    assert after - before == pytest.approx(by, abs=0.02)


@pytest.mark.parametrize("by", [-2, 0, 1])
def test_whole_pixels_are_moved_exactly(by):
    moved = shift_line(np.array([1.0, 2.0, 3.0]), by)
    middle = len(moved) // 2
    np.testing.assert_allclose(moved[middle + by - 1 : middle + by + 2], [1, 2, 3], atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_a_kernel_is_placed_once_and_where_an_enlargement_lies(scale):
    kernel = np.zeros((25, 25))
    kernel[6:14, 10:15] = np.random.default_rng(scale).random((8, 5))
    kernel = (kernel / kernel.sum()).astype(np.float32)
    placed = place(kernel, scale, "centre")
    np.testing.assert_allclose(centroid(placed[None])[0], -(scale - 1) / 2, atol=0.02)
    assert placed.sum() == pytest.approx(1, abs=1e-5)
    assert place(placed, scale, "centre") is placed
    assert place(kernel, scale, "corner") is kernel


@pytest.mark.parametrize("scale", SCALES)
def test_on_the_centre_grid_a_picture_lies_where_its_bicubic_enlargement_lies(scale):
    """The law of one grid for people: degraded with the kernel, an enlargement gives back what was enlarged."""
    y, x = np.mgrid[:40, :48]
    smooth = np.stack([0.5 + 0.3 * np.sin(0.21 * x + c) * np.cos(0.17 * y) for c in range(3)]).astype(np.float32)
    large = upsample(torch.from_numpy(smooth)[None], scale, "bicubic", "centre")
    point = np.zeros((15, 15), np.float32)
    point[7, 7] = 1
    small = degrade(large, torch.from_numpy(place(point, scale, "centre"))[None], scale)[0].numpy()
    inside = np.s_[:, 6:-6, 6:-6]
    np.testing.assert_allclose(small[inside], smooth[inside], atol=2e-3)
    shifted = degrade(large, torch.from_numpy(point)[None], scale)[0].numpy()
    assert np.abs(shifted[inside] - smooth[inside]).max() > 0.01
