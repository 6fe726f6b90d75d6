"""Windows: together they are the whole image, whatever the memory limit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage import data

from kernels_bank import benchmark_kernels
from kernels_bank.runtime.errors import BadRequestError
from pipeline.degrade import degrade
from pipeline.inference import layout, memory
from pipeline.inference.windows import Settings, plan_windows


def seen(hr: np.ndarray, kernel: np.ndarray, scale: int, sigma: float) -> np.ndarray:
    """An 8-bit photograph of `hr`, as float32."""
    image = torch.from_numpy(hr).permute(2, 0, 1)[None].float() / 255
    lr = degrade(image, torch.from_numpy(kernel)[None], scale)[0].permute(1, 2, 0).numpy()
    lr = lr + sigma * np.random.default_rng(0).standard_normal(lr.shape)
    return (np.round(lr.clip(0, 1) * 255) / 255).astype(np.float32)


@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    scale=st.integers(1, 4),
    reach=st.sampled_from([16, 40, 104]),
    most=st.integers(200**2, 400**2),
)
def test_windows_cover_the_image_once(height, width, scale, reach, most):
    found = layout.layout(height, width, layout.torus_margin(scale, 21), reach, most)
    assert found is None or found.largest <= most
    if found is None:
        return
    for spans, length in ((found.rows, height), (found.columns, width)):
        total = np.zeros(scale * length, np.float32)
        for span in spans:
            total[scale * span.first : scale * span.last] += span.weight(scale)
            assert span.start % layout.ALIGNED == 0
            assert span.padded % layout.ALIGNED == 0
            assert span.padded >= span.length
            if len(spans) > 1:  # what the result depends on lies in the window, on the torus
                assert span.first - span.start >= reach
                assert span.start + span.length - span.last >= reach
        np.testing.assert_allclose(total, 1, rtol=1e-6)


def test_a_window_is_a_cut_of_the_torus():
    torus = np.arange(16 * 24 * 3, dtype=np.float32).reshape(16, 24, 3)
    span = layout.Span(-8, 16, 24, 0, 4, 0, 0)
    window = layout.cut(torus, span, layout.Span(16, 16, 24, 16, 20, 0, 0))
    assert window.shape == (24, 24, 3)
    np.testing.assert_array_equal(window[:8, :8], torus[-8:, 16:])
    np.testing.assert_array_equal(window[8:16, 8:16], torus[:8, :8])


def limit(restorer, shape, settings, windows: int) -> int:
    """A memory limit that makes about this many windows."""
    fixed = memory.in_use(torch.device("cpu")) + memory.RESERVE
    for megabytes in np.geomspace(400, 1, 200):
        bytes_ = int(fixed + megabytes * 2**20)
        try:
            if (
                plan_windows(restorer, *shape, settings._replace(max_memory=bytes_), item=4, channels=3).count
                >= windows
            ):
                return bytes_
        except BadRequestError:
            break
    pytest.fail("no limit makes so many windows")


@pytest.mark.parametrize(("number", "scale", "sigma"), [(1, 2, 0.0), (5, 2, 0.01)])
def test_windows_give_what_the_whole_image_gives(lively, number, scale, sigma):
    kernel = benchmark_kernels(21)[number - 1]
    lr = seen(data.astronaut()[:400], kernel, scale, sigma)[:176, :240]
    whole = lively.restore(lr, scale, sigma, kernel)
    small = limit(lively, lr.shape[:2], Settings(scale, sigma, kernel, False, 0, None, None), 4)
    parts = lively.restore(lr, scale, sigma, kernel, max_memory=small)
    assert (whole.windows, parts.windows >= 2) == (1, True)
    assert np.abs(parts.image - whole.image).max() < 1e-3
    assert parts.residual == pytest.approx(whole.residual, rel=1e-3)


def test_a_limit_that_nothing_fits_into_is_one_line(lively):
    lr = np.zeros((300, 300, 3), np.float32)
    with pytest.raises(BadRequestError, match=r"0\.00 GiB are too little for a 300 x 300 image: about .* raise --max"):
        lively.restore(lr, 2, 0.0, benchmark_kernels(21)[0], max_memory=2**20)


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_wider_kernel_and_a_smaller_alpha_reach_further(scale):
    narrow, wide = benchmark_kernels(25)[0], benchmark_kernels(25)[3]
    assert layout.inverse_reach(narrow, 1e-4, scale) <= layout.inverse_reach(wide, 1e-4, scale)
    assert layout.inverse_reach(wide, 1e-2, scale) <= layout.inverse_reach(wide, 1e-5, scale)
    delta = np.zeros((3, 3), np.float32)
    delta[1, 1] = 1
    assert layout.inverse_reach(delta, 1e-5, scale) <= 1
