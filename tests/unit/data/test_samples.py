"""A sample is a pure function of (seed, epoch, key, patch), and its LR image is what the definition says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from pipeline.config import DataConfig
from pipeline.data.samples import degrade_draws, draw

TILE = np.random.default_rng(5).integers(0, 256, (140, 120, 3), dtype=np.uint8)
BANK = np.random.default_rng(6).random((50, 9, 9)).astype(np.float32)
BANK /= BANK.sum(axis=(1, 2), keepdims=True)
DATA = DataConfig(shards="", bank="", patch=48, sigma=(0.01, 0.05))


def sample(key: str = "k", patch: int = 0, epoch: int = 0, seed: int = 0, data: DataConfig = DATA, tile=TILE):
    return draw(tile, key, patch, epoch=epoch, seed=seed, data=data, bank=BANK)


def test_the_same_key_gives_the_same_sample_in_any_company():
    alone = degrade_draws([sample("b")], 2, "none")[0]
    together = degrade_draws([sample("a"), sample("b"), sample("c")], 2, "none")[1]
    assert np.array_equal(alone, together)


@pytest.mark.parametrize("change", [{"key": "other"}, {"patch": 1}, {"epoch": 1}, {"seed": 1}])
def test_each_part_of_the_key_changes_the_sample(change: dict):
    assert not np.array_equal(sample(**change).hr, sample().hr)
    assert sample(**change).sigma != sample().sigma


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_lr_is_blur_decimation_and_the_drawn_noise(scale: int):
    one = sample()
    lr = degrade_draws([one], scale, "none")[0]
    blurred = [ndimage.convolve(c.astype(np.float64) / 255, one.kernel.astype(np.float64), mode="wrap") for c in one.hr]
    noise = lr - np.stack(blurred)[:, ::scale, ::scale]
    assert abs(noise.mean()) < 4 * one.sigma / np.sqrt(noise.size)
    assert abs(noise.std() / one.sigma - 1) < 0.2


def test_noise_free_share_and_range_are_respected():
    data = DATA.model_copy(update={"noise_free": 0.3})
    levels = np.array([sample(key=str(i), data=data).sigma for i in range(800)])
    assert 0.24 < (levels == 0).mean() < 0.36
    drawn = levels[levels > 0]
    assert drawn.min() >= 0.01
    assert drawn.max() <= 0.05
    assert abs(drawn.mean() - 0.03) < 0.002


def test_kernels_and_orientations_are_drawn_evenly():
    ramp = np.broadcast_to(np.arange(48, dtype=np.uint8)[:, None, None], (48, 48, 3))
    hits = {sample(key=str(i), tile=ramp).hr.tobytes() for i in range(100)}
    assert len(hits) == 4  # a vertical ramp has four different orientations among the eight
    kernels = {sample(key=str(i)).kernel.tobytes() for i in range(600)}
    assert len(kernels) == len(BANK)


def test_a_tile_smaller_than_the_patch_is_extended_by_reflection():
    small = TILE[:30, :40]
    hr = sample(tile=small).hr
    assert hr.shape == (3, 48, 48)
    assert set(np.unique(hr)) <= set(np.unique(small))
