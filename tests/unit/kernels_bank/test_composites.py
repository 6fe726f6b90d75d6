"""Composite families: a blur followed by a reduction is one kernel; a bank without them stays as it was."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from scipy import ndimage, signal

from jobs.build_kernel_bank import BuildKernelBank
from kernels_bank import KernelBankSpec, KernelCodec
from kernels_bank.gaussian import draw_gaussian, gaussian_kernels
from kernels_bank.load import load_kernels
from kernels_bank.reduction import reduction_line
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.sampling import draw_range
from kernels_bank.spec import COMPOSITES, REDUCING, preset_spec
from kernels_bank.store import law_digest
from pipeline.degrade import degrade
from pipeline.reduction import compose, one_hot

COUNTS = {"gaussian": 0, "motion": 0, "gaussian_reduced": 9, "motion_reduced": 9, "reduction": 3}


def blurs_of(spec: KernelBankSpec, n: int) -> np.ndarray:
    """The blurs of the first Gaussian composites, drawn by hand from the family's own stream."""
    key = hashlib.blake2b(f"{spec.seed}/gaussian_reduced/0".encode(), digest_size=16).digest()
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "big")))
    sigmas, axis = draw_gaussian(1024, rng=rng, sigma=spec.sigma, isotropic=spec.isotropic, sigma_law=spec.sigma_law)
    return gaussian_kernels(sigmas[:n], axis[:n], spec.size)


@pytest.mark.parametrize("grid", ["corner", "centre"])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_a_composite_is_the_convolution_of_its_parts(scale, grid):
    """By SciPy, and by what training does with a blur of the bank and a reduction of its own."""
    spec = KernelBankSpec(**COUNTS, size=31, scale=scale, grid=grid, seed=3)
    kernels, _ = draw_range(spec, "gaussian_reduced", 0, 9)
    blurs = blurs_of(spec, 9)
    names = [spec.reductions[i % 3] for i in range(9)]
    for kernel, blur, name in zip(kernels, blurs, names, strict=True):
        line = reduction_line(name, scale, grid)
        whole = signal.convolve2d(blur.astype(np.float64), np.outer(line, line), mode="same")
        np.testing.assert_allclose(kernel, whole / whole.sum(), atol=1e-8)
    composed = compose(torch.from_numpy(blurs), one_hot(names), scale, grid).numpy()
    np.testing.assert_allclose(kernels, composed, atol=1e-7)
    alone, drawn = draw_range(spec, "reduction", 0, 3)
    assert not drawn
    for kernel, name in zip(alone, spec.reductions, strict=True):
        line = np.pad(reduction_line(name, scale, grid), 31)
        line = line[len(line) // 2 - 15 :][:31]
        np.testing.assert_allclose(kernel, np.outer(line, line), atol=1e-7)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_composite_does_what_blur_and_reduction_do_in_turn(scale):
    """On a periodic picture; the blurs are narrow, so that the window cuts nothing off."""
    spec = KernelBankSpec(**COUNTS, size=41, scale=scale, sigma=(0.6, 1.6))
    kernels, _ = draw_range(spec, "gaussian_reduced", 0, 9)
    picture = np.random.default_rng(0).random((24 * scale, 24 * scale))
    for i, (kernel, blur) in enumerate(zip(kernels, blurs_of(spec, 9), strict=True)):
        line = reduction_line(spec.reductions[i % 3], scale, "centre")
        expected = ndimage.convolve(picture, blur.astype(np.float64), mode="wrap")
        for axis in (0, 1):
            expected = ndimage.convolve1d(expected, line, axis=axis, mode="wrap")
        image, weights = torch.from_numpy(picture)[None, None], torch.from_numpy(kernel).double()[None]
        found = degrade(image, weights, scale)[0, 0].numpy()
        np.testing.assert_allclose(found, expected[::scale, ::scale], atol=2e-6)


@pytest.mark.parametrize("preset", ["camera-x2", "camera-x3", "camera-x4"])
@pytest.mark.parametrize("family", COMPOSITES)
def test_composites_sum_to_one_and_pass_as_kernels(preset, family, tmp_path):
    spec = preset_spec(preset, {})
    kernels, _ = draw_range(spec, family, 0, 300)
    np.testing.assert_allclose(kernels.sum((1, 2)), 1, atol=1e-6)
    # A block's mean has no lobes; bicubic and Lanczos have them, also behind most blurs.
    assert kernels[0::3].min() >= 0
    assert kernels[1::3].min() < 0 and kernels[2::3].min() < kernels[1::3].min()  # noqa: PT018
    np.save(tmp_path / "kernels.npy", kernels)
    np.testing.assert_allclose(load_kernels(tmp_path / "kernels.npy"), kernels, atol=1e-7)


def test_the_default_bank_is_what_it_was():
    """Spec and law as they were before there were composites: shards and manifests keep their bytes."""
    assert preset_spec("article", {}) == KernelBankSpec()
    written = KernelBankSpec().model_dump(mode="json")
    assert not written.keys() & {*COMPOSITES, *REDUCING}
    assert KernelBankSpec.model_validate(written) == KernelBankSpec()
    law = "981d518ca4445192f22b570f6b82db35597a9deb6e9248af2aad02b6827cd332"
    mixed = KernelBankSpec(reduction=3, scale=4, size=21, reductions=("bicubic",), grid="corner")
    for spec in (KernelBankSpec(), mixed):
        assert law_digest(spec, "gaussian") == law_digest(spec, "disk") == law
    assert mixed.model_dump()["scale"] == 4
    assert KernelBankSpec.model_validate_json(mixed.model_dump_json()) == mixed


def test_the_law_of_composites_names_scale_grid_and_reductions():
    spec = KernelBankSpec(**COUNTS, size=31)
    laws = {
        law_digest(spec.model_copy(update=changes), "gaussian_reduced")
        for changes in ({}, {"scale": 3}, {"grid": "corner"}, {"reductions": ("bicubic", "area", "lanczos")})
    }
    assert len(laws) == 4
    assert law_digest(spec.model_copy(update={"reduction": 0}), "gaussian_reduced") in laws


def test_the_code_keeps_lobes(tmp_path):
    spec = KernelBankSpec(**COUNTS | {"gaussian_reduced": 600}, size=15)
    kernels, _ = draw_range(spec, "gaussian_reduced", 0, 600)
    codec = KernelCodec.fit(kernels, explained_variance=0.9999, signed=True)
    decoded = codec.decode(codec.encode(kernels))
    np.testing.assert_allclose(decoded.sum((1, 2)), 1, atol=1e-5)
    np.testing.assert_allclose(decoded, kernels, atol=3e-3)
    assert decoded.min() < 0.8 * kernels.min() < 0
    tensors = codec.decode(codec.encode(torch.from_numpy(kernels)))
    np.testing.assert_allclose(tensors.numpy(), decoded, atol=1e-6)
    codec.save(tmp_path / "codec.safetensors")
    again = KernelCodec.load(tmp_path / "codec.safetensors")
    assert again.signed and again.digest == codec.digest  # noqa: PT018
    plain = KernelCodec.fit(kernels, explained_variance=0.9999)
    assert plain.digest != codec.digest
    assert plain.decode(plain.encode(kernels)).min() >= 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": 4}, "lanczos at scale 4 on the centre grid has 27 pixels; choose a size of at least 27"),
        ({"reductions": ("area", "area")}, "area is given more than once"),
        ({"reductions": ()}, "at least 1 item"),
    ],
)
def test_composites_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        KernelBankSpec(reduction=3, **settings)


def test_settings_of_composites_are_refused_without_them():
    with pytest.raises(ValueError, match=r"grid, scale: no effect without composites; ask for some of gaussian_red"):
        KernelBankSpec(scale=4, grid="corner")


@pytest.mark.parametrize("spec", [KernelBankSpec(), KernelBankSpec(**COUNTS, size=31, scale=4)])
def test_a_spec_that_was_written_is_read_as_the_same(spec):
    assert KernelBankSpec.model_validate(spec.model_dump()) == spec
    assert KernelBankSpec.model_validate_json(spec.model_dump_json()) == spec


def test_a_preset_brings_what_the_other_settings_need():
    command = BuildKernelBank(output="bank", preset="camera-x4", reduction=3, scale=4)
    assert (command.spec().size, command.spec().scale) == (31, 4)


@pytest.mark.parametrize(
    ("reduction", "grid", "message"),
    [
        ("area", "center", "grid 'center': unknown; choose from corner, centre"),
        ("cubic", "centre", "reduction 'cubic': unknown; choose from direct, area, bicubic, lanczos"),
    ],
)
def test_an_unknown_grid_or_reduction_is_refused(reduction, grid, message):
    with pytest.raises(BadRequestError, match=message):
        reduction_line(reduction, 2, grid)
