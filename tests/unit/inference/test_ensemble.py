"""The eight turns of the square: degradation commutes with them exactly, so a restoration can be averaged over them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels_bank import benchmark_kernels
from pipeline.degrade import degrade
from pipeline.inference.ensemble import TURNS


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_degradation_commutes_with_every_turn(turn, scale):
    random = torch.Generator().manual_seed(0)
    hr = torch.rand(1, 3, 8 * scale, 11 * scale, generator=random, dtype=torch.float64)
    kernel = torch.rand(1, 5, 5, generator=random, dtype=torch.float64)
    kernel /= kernel.sum()
    turned = degrade(turn.hr(hr, scale).contiguous(), turn.lr(kernel).contiguous(), scale)
    torch.testing.assert_close(turned, turn.lr(degrade(hr, kernel, scale)), rtol=0, atol=1e-14)
    assert torch.equal(turn.hr_back(turn.hr(hr, scale), scale), hr)


def test_the_turns_are_eight_different_ones():
    grid = torch.arange(6.0).reshape(1, 1, 2, 3)
    assert len({(turn.lr(grid).shape, tuple(turn.lr(grid).flatten().tolist())) for turn in TURNS}) == 8


def test_an_ensemble_turns_with_its_image(lively):
    """The law that a single pass breaks and the mean over all turns keeps, up to rounding."""
    random = np.random.default_rng(0)
    lr = torch.from_numpy(random.random((1, 3, 48, 56)).astype(np.float32))
    kernel = torch.from_numpy(benchmark_kernels(21)[6][None])

    def mean(image: torch.Tensor, blur: torch.Tensor) -> torch.Tensor:
        parts = [
            turn.hr_back(lively.nonblind(turn.lr(image).contiguous(), turn.lr(blur).contiguous(), 2, 0.01), 2)
            for turn in TURNS
        ]
        return torch.stack(parts).mean(0)

    plain, ensemble = lively.nonblind(lr, kernel, 2, 0.01), mean(lr, kernel)
    single = 0.0
    for turn in TURNS[1:]:
        image, blur = turn.lr(lr).contiguous(), turn.lr(kernel).contiguous()
        torch.testing.assert_close(turn.hr_back(mean(image, blur), 2), ensemble, rtol=0, atol=2e-5)
        single = max(single, float((turn.hr_back(lively.nonblind(image, blur, 2, 0.01), 2) - plain).abs().max()))
    assert single > 1e-3


def test_the_restorer_takes_that_mean(lively, photo):
    kernel = benchmark_kernels(21)[6]
    image = photo / np.float32(255)
    ensemble = lively.restore(image, 2, 0.01, kernel, self_ensemble=True).image
    turned = lively.restore(image.transpose(1, 0, 2).copy(), 2, 0.01, kernel.T.copy(), self_ensemble=True).image
    np.testing.assert_allclose(turned.transpose(1, 0, 2), ensemble, atol=2e-5)
    assert np.abs(ensemble - lively.restore(image, 2, 0.01, kernel).image).max() > 1e-3
