"""A sample is a pure function of (seed, epoch, key, patch), and its LR image is what the definition says."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy import ndimage

from kernels_bank import sample_gaussian
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.spec import KernelBankSpec
from pipeline.config import CameraConfig, DataConfig
from pipeline.data.samples import degrade_draws, draw, with_fresh_kernels

TILE = np.random.default_rng(5).integers(0, 256, (140, 120, 3), dtype=np.uint8)
BANK = np.random.default_rng(6).random((50, 9, 9)).astype(np.float32)
BANK /= BANK.sum(axis=(1, 2), keepdims=True)
DATA = DataConfig(shards="", bank="", patch=48, sigma=(0.01, 0.05))


def sample(key: str = "k", patch: int = 0, epoch: int = 0, seed: int = 0, data: DataConfig = DATA, tile=TILE):
    return draw(tile, key, patch, epoch=epoch, seed=seed, data=data, bank=BANK)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_the_same_key_gives_the_same_sample_in_any_company(scale: int):
    """Bit-equal, so that a run does not depend on how its samples fall into batches and workers."""
    names = "abcdefg"
    together = degrade_draws([sample(name) for name in names], scale, "none").lr
    for first, last in ((1, 2), (0, 3), (2, 7)):
        company = degrade_draws([sample(name) for name in names[first:last]], scale, "none").lr
        assert np.array_equal(company, together[first:last])


def test_the_samples_of_the_default_settings_keep_their_bits():
    """What is added to a sample is drawn from a generator of its own, or runs could not go on where they stopped."""
    digest = hashlib.sha256()
    for key in "abc":
        one = sample(key)
        digest.update(one.hr.tobytes() + one.kernel.tobytes() + repr(one.sigma).encode())
        digest.update(one.noise.standard_normal(8, dtype=np.float32).tobytes())
    assert digest.hexdigest()[:16] == "585bae266b5cd05f"


@pytest.mark.parametrize("change", [{"key": "other"}, {"patch": 1}, {"epoch": 1}, {"seed": 1}])
def test_each_part_of_the_key_changes_the_sample(change: dict):
    assert not np.array_equal(sample(**change).hr, sample().hr)
    assert sample(**change).sigma != sample().sigma


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_lr_is_blur_decimation_and_the_drawn_noise(scale: int):
    one = sample()
    lr = degrade_draws([one], scale, "none").lr[0]
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


LAW = KernelBankSpec(gaussian=1, motion=0, size=9, sigma=(0.7, 2.0), isotropic=0.5, noise=0.2)


def fresh(keys: str, epoch: int = 0, seed: int = 0, law: KernelBankSpec = LAW) -> list[np.ndarray]:
    draws = with_fresh_kernels([sample(key) for key in keys], law, epochs=[epoch] * len(keys), seed=seed)
    return [d.kernel for d in draws]


def test_fresh_kernels_are_a_pure_function_of_the_samples_key():
    assert np.array_equal(fresh("b")[0], fresh("abc")[1])
    for other in (fresh("c"), fresh("b", epoch=1), fresh("b", seed=1)):
        assert not np.array_equal(fresh("b")[0], other[0])
    assert all(np.array_equal(a, b) for a, b in zip(fresh("b"), fresh("b"), strict=True))


def test_fresh_kernels_follow_the_banks_law():
    keys = [str(i) for i in range(600)]
    law = LAW.model_copy(update={"noise": 0.0})
    kernels = np.stack(
        [d.kernel for d in with_fresh_kernels([sample(k) for k in keys], law, epochs=[0] * len(keys), seed=0)]
    )
    assert kernels.dtype == np.float32
    assert len(np.unique(kernels.reshape(600, -1), axis=0)) == 600
    np.testing.assert_allclose(kernels.sum(axis=(1, 2)), 1, atol=1e-6)
    isotropic = np.abs(kernels - kernels.transpose(0, 2, 1)).max(axis=(1, 2)) < 1e-7
    assert 0.4 < isotropic.mean() < 0.6
    ours, bank = (
        kernels.mean(axis=0),
        sample_gaussian(600, 9, rng=np.random.default_rng(0), sigma=(0.7, 2.0), isotropic=0.5).mean(axis=0),
    )
    np.testing.assert_allclose(ours, bank, atol=0.01)


def test_a_law_with_other_kernels_is_refused():
    with pytest.raises(BadRequestError, match="'online' draws Gaussians"):
        fresh("a", law=KernelBankSpec(gaussian=1, motion=1, size=9))


CAMERA = CameraConfig(
    reductions={"direct": 0.25, "area": 0.25, "bicubic": 0.25, "lanczos": 0.25},
    shot=0.5,
    linear=0.3,
    rounded=0.7,
    jpeg=0.5,
    jpeg_twice=0.5,
    level_error=0.2,
)


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_a_camera_gives_the_same_sample_in_any_company(scale: int):
    data = DATA.model_copy(update={"camera": CAMERA})
    names = [str(i) for i in range(12)]
    together = degrade_draws([sample(name, data=data) for name in names], scale, "none")
    for first, last in ((1, 2), (0, 3), (2, 12)):
        company = degrade_draws([sample(name, data=data) for name in names[first:last]], scale, "none")
        for one, all_of_them in zip(company, together, strict=True):
            assert np.array_equal(one, all_of_them[first:last])


def test_a_camera_leaves_what_is_drawn_beside_it_alone():
    for name in "abc":
        plain, camera = sample(name), sample(name, data=DATA.model_copy(update={"camera": CAMERA}))
        assert np.array_equal(plain.hr, camera.hr)
        assert np.array_equal(plain.kernel, camera.kernel)
        assert plain.sigma == camera.sigma


def test_a_camera_that_does_nothing_changes_no_bit():
    nothing = CameraConfig(centred=0.0, rounded=0.0)
    plain = degrade_draws([sample(name) for name in "abc"], 2, "none")
    same = degrade_draws([sample(name, data=DATA.model_copy(update={"camera": nothing})) for name in "abc"], 2, "none")
    np.testing.assert_allclose(same.lr, plain.lr, atol=2e-7)
    np.testing.assert_allclose(same.kernel, plain.kernel, atol=1e-8)
    assert np.array_equal(same.sigma, plain.sigma)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_cameras_kernel_explains_its_image(scale: int):
    """The told kernel is the reduction too: what it leaves of the LR image is the told noise level, JPEG and all."""
    data = DATA.model_copy(update={"camera": CAMERA.model_copy(update={"linear": 0.0, "level_error": 0.0})})
    for name in "abcdefgh":
        one = sample(name, data=data)
        made = degrade_draws([one], scale, "none")
        hr, kernel = one.hr.astype(np.float64) / 255, made.kernel[0].astype(np.float64)
        clean = np.stack([ndimage.convolve(channel, kernel, mode="wrap") for channel in hr])[:, ::scale, ::scale]
        left = float(np.sqrt(np.square(made.lr[0] - clean.clip(0, 1)).mean()))
        assert left == pytest.approx(made.sigma[0], rel=0.3, abs=0.5 / 255)
