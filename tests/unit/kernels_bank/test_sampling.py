"""How kernels are drawn: laws every kernel obeys, oracles for each family, and reproducible bits."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf

from kernels_bank import KernelBankSpec, portable, sample_disk, sample_gaussian, sample_motion
from kernels_bank import gaussian as gaussian_module
from kernels_bank.centring import centroid
from kernels_bank.gaussian import draw_gaussian, gaussian_kernels
from kernels_bank.motion import Shake, _fitted, _softened, _splatted
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.sampling import CHUNK, draw_range
from kernels_bank.spec import FAMILIES, PRESETS, preset_spec

SAMPLERS = {"gaussian": sample_gaussian, "motion": sample_motion, "disk": sample_disk}


def philox(key: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key))


@pytest.mark.parametrize("size", [7, 21, 25])
@pytest.mark.parametrize("family", SAMPLERS)
def test_every_sample_is_a_centred_kernel(family, size):
    kernels = SAMPLERS[family](300, size, rng=philox())
    assert kernels.shape == (300, size, size)
    assert kernels.dtype == np.float32
    assert (kernels >= 0).all()
    np.testing.assert_allclose(kernels.sum((1, 2)), 1, atol=1e-6)
    np.testing.assert_allclose(centroid(kernels), 0, atol=1e-6)
    assert SAMPLERS[family](0, size, rng=philox()).shape == (0, size, size)


@pytest.mark.parametrize("family", SAMPLERS)
def test_requests_that_make_no_sense(family):
    with pytest.raises(BadRequestError, match="odd"):
        SAMPLERS[family](3, 20, rng=philox())
    with pytest.raises(BadRequestError, match="n >= 0"):
        SAMPLERS[family](-1, 21, rng=philox())


@pytest.mark.parametrize("sigma", [0.1, 0.2, 0.39, 0.41, 0.79, 0.81, 1.39, 1.41, 3.59, 3.61, 5.0])
def test_isotropic_gaussian_is_the_integral_over_each_pixel(sigma):
    """Beside every threshold of the quadrature, against the error function."""
    kernel = gaussian_kernels(np.array([[sigma, sigma]]), np.array([[0.6, 0.8]]), 21)[0]
    line = np.diff(erf((np.arange(22) - 10.5) / (sigma * np.sqrt(2))))
    exact = line[:, None] * line / line.sum() ** 2
    np.testing.assert_allclose(kernel, exact, atol=1e-5 * exact.max())


def test_anisotropic_gaussian_is_the_integral_over_each_pixel():
    """Against high-resolution integration, 32 x 32 Gauss-Legendre nodes a pixel."""
    sigmas, axis = draw_gaussian(24, rng=philox(1), sigma=(0.3, 4.0), isotropic=0.0, sigma_law="sigma")
    nodes, weights = np.polynomial.legendre.leggauss(32)
    points = (np.arange(-10, 11)[:, None] + nodes / 2).ravel()
    x, y = points[None, :], points[:, None]
    weight = np.tile(weights, 21)
    for kernel, (along, across), (ux, uy) in zip(gaussian_kernels(sigmas, axis, 21), sigmas, axis, strict=True):
        density = np.exp(-(((ux * x + uy * y) / along) ** 2 + ((ux * y - uy * x) / across) ** 2) / 2)
        exact = (density * weight * weight[:, None]).reshape(21, 32, 21, 32).sum((1, 3))
        np.testing.assert_allclose(kernel, exact / exact.sum(), atol=1e-5 * kernel.max())


def test_factors_and_direct_evaluation_agree(monkeypatch):
    sigmas, axis = draw_gaussian(64, rng=philox(2), sigma=(0.4, 5.0), isotropic=0.2, sigma_law="sigma")
    by_factors = gaussian_kernels(sigmas, axis, 31)
    monkeypatch.setattr(gaussian_module, "_LARGEST_EXPONENT", -1.0)
    np.testing.assert_allclose(gaussian_kernels(sigmas, axis, 31), by_factors, rtol=1e-6, atol=1e-30)


def test_thin_slanted_gaussians_do_not_overflow():
    kernels = gaussian_kernels(np.array([[30.0, 0.1]]), np.array([[0.8, 0.6]]), 51)
    assert np.isfinite(kernels).all()
    np.testing.assert_allclose(kernels.sum(), 1, atol=1e-6)


def test_gaussian_moments_follow_sigma_and_angle():
    """Second moments: the covariance, plus the pixel's own 1/12, in x to the right and y down."""
    angle = np.radians(30)
    axis = np.array([[np.cos(angle), np.sin(angle)]])
    kernel = gaussian_kernels(np.array([[3.0, 1.2]]), axis, 41)[0].astype(np.float64)
    y, x = np.mgrid[-20:21, -20:21]
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    expected = rotation @ np.diag([9.0, 1.44]) @ rotation.T + np.eye(2) / 12
    measured = [[(kernel * x * x).sum(), (kernel * x * y).sum()], [(kernel * x * y).sum(), (kernel * y * y).sum()]]
    np.testing.assert_allclose(measured, expected, rtol=1e-4)


def test_gaussian_symmetry_is_exact():
    kernels = sample_gaussian(100, rng=philox(3))
    np.testing.assert_array_equal(kernels, kernels[:, ::-1, ::-1])


def test_gaussian_draws_follow_their_law():
    for law, scaled in (("sigma", lambda s: s), ("variance", np.square), ("log", np.log)):
        sigmas, axis = draw_gaussian(20_000, rng=philox(4), sigma=(1.0, 3.0), isotropic=0.3, sigma_law=law)
        uniform = (scaled(sigmas) - scaled(1.0)) / (scaled(3.0) - scaled(1.0))
        np.testing.assert_allclose(np.histogram(uniform[:, 0], 5, (0, 1))[0] / 20_000, 0.2, atol=0.012)
        assert (sigmas[:, 0] == sigmas[:, 1]).mean() == pytest.approx(0.3, abs=0.015)
        np.testing.assert_allclose((axis**2).sum(1), 1)
        # Uniform direction: the double-angle vector averages to nothing.
        np.testing.assert_allclose([(axis[:, 0] * axis[:, 1]).mean(), (axis[:, 0] ** 2).mean()], [0, 0.5], atol=0.012)


def test_multiplicative_noise_stays_within_its_range():
    clean = sample_gaussian(50, 11, rng=philox(5), isotropic=0.0)
    noisy = sample_gaussian(50, 11, rng=philox(5), isotropic=0.0, noise=0.25)
    ratio = noisy / clean
    ratio /= ratio.min(axis=(1, 2), keepdims=True)
    assert 1.2 < ratio.max() <= 1.26
    np.testing.assert_allclose(noisy.sum((1, 2)), 1, atol=1e-6)


def test_splatting_keeps_mass_and_centre():
    rng = philox(6)
    x, y = rng.uniform(2, 18, (2, 40, 5))
    splat = _splatted(x, y, 21)
    np.testing.assert_allclose(splat.sum((1, 2)), 40)
    soft = _softened(splat, np.full(5, 0.2))
    np.testing.assert_allclose(soft.sum((1, 2)), 40)
    expected = np.stack([y.mean(0), x.mean(0)], 1) - 10
    np.testing.assert_allclose(centroid(splat), expected, atol=1e-12)
    np.testing.assert_allclose(centroid(soft), expected, atol=1e-12)


def test_paths_are_fitted_into_the_window():
    x, y = philox(7).standard_normal((2, 64, 200)).cumsum(1)
    extent = np.linspace(2, 60, 200)
    fx, fy, got = _fitted(x, y, extent, 21)
    assert min(fx.min(), fy.min()) >= 1
    assert max(fx.max(), fy.max()) < 19
    assert (got <= extent + 1e-9).all()
    small = extent < 8
    np.testing.assert_allclose(got[small], extent[small])
    np.testing.assert_allclose(np.maximum(np.ptp(fx, axis=0), np.ptp(fy, axis=0)), got)


def test_a_path_without_forces_is_a_straight_even_line():
    """Limits of the model: no turn, no shake, an unforgetting force that velocity follows at once."""
    line = Shake(memory=(1e9, 1e9), inertia=(1e-9, 1e-9), turn=0, shaken=0, narrowing=1, softness=0)
    kernels = sample_motion(50, 41, rng=philox(8), extent=(30.0, 30.0), shake=line).astype(np.float64)
    axis = np.arange(-20, 21)
    yy, xx = kernels.sum(2) @ axis**2, kernels.sum(1) @ axis**2
    xy = (kernels @ axis) @ axis
    major = (xx + yy) / 2 + np.sqrt((xx - yy) ** 2 / 4 + xy**2)
    minor = (xx + yy) / 2 - np.sqrt((xx - yy) ** 2 / 4 + xy**2)
    assert (minor < 0.3).all()  # a bilinear footprint wide
    length = 30 * np.sqrt(xx + yy) / np.sqrt(np.maximum(xx, yy))
    np.testing.assert_allclose(major, length**2 / 12, rtol=0.03)  # an even line's variance


def test_short_exposures_are_smoother_than_long_ones():
    """A path that forgets quickly doubles back on itself: it covers more pixels for the same extent."""
    tangled, smooth = (
        sample_motion(300, rng=philox(9), extent=(16, 16), shake=Shake(memory=(m, m), inertia=(0.02, 0.02), softness=0))
        for m in (0.02, 3.0)
    )
    assert (tangled > 1e-4).sum() > 1.2 * (smooth > 1e-4).sum()


def test_disk_is_the_covered_area():
    kernel = sample_disk(1, 21, rng=philox(), radius=(6.0, 6.0))[0] * (np.pi * 36)
    fine = (np.arange(21 * 64) + 0.5) / 64 - 10.5
    exact = (np.hypot(fine[:, None], fine) < 6).reshape(21, 64, 21, 64).mean((1, 3))
    np.testing.assert_allclose(kernel, exact, atol=0.02)
    np.testing.assert_allclose(kernel[10, 10], 1, atol=2e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_range_alone_has_the_same_bits(family):
    spec = KernelBankSpec(disk=1, delta=1, gaussian_reduced=1, motion_reduced=1, reduction=1, seed=5)
    whole, parameters = draw_range(spec, family, 0, CHUNK + 40)
    for start, stop in ((3, 4), (CHUNK - 2, CHUNK + 3), (CHUNK, CHUNK + 40)):
        part, drawn = draw_range(spec, family, start, stop)
        np.testing.assert_array_equal(part, whole[start:stop])
        for name, values in drawn.items():
            np.testing.assert_array_equal(values, parameters[name][start:stop])


def test_length_curvature_and_anisotropy_are_settings():
    """Each setting of the spec reaches the kernels, and does what it is called."""

    def widths(**changes: object) -> float:
        """Variance across the main axis in units of that along it: 0 is a line, 1 is round."""
        spec = KernelBankSpec(extent=(14.0, 14.0)).model_copy(update=changes)
        kernels, _ = draw_range(spec, "motion", 0, CHUNK)
        axis = np.arange(-10, 11)
        yy, xx, xy = kernels.sum(2) @ axis**2, kernels.sum(1) @ axis**2, (kernels @ axis) @ axis
        spread = np.sqrt((xx - yy) ** 2 / 4 + xy**2)
        return float((((xx + yy) / 2 - spread) / ((xx + yy) / 2 + spread)).mean())

    _, drawn = draw_range(KernelBankSpec(extent=(5.0, 5.0)), "motion", 0, 64)
    np.testing.assert_allclose(drawn["extent"], 5, rtol=1e-6)
    usual = widths()
    assert widths(turn=0.0) < 0.8 * usual < usual < 0.8 * widths(turn=8.0)
    assert widths(narrowing=8.0) < 0.9 * usual < usual < 0.95 * widths(narrowing=1.0)
    assert widths(memory=(10.0, 10.0)) < 0.9 * widths(memory=(0.02, 0.02))


def test_seed_and_chunk_make_other_kernels():
    first, _ = draw_range(KernelBankSpec(seed=0), "gaussian", 0, 2 * CHUNK)
    other, _ = draw_range(KernelBankSpec(seed=1), "gaussian", 0, CHUNK)
    assert not (first[:CHUNK] == other).all((1, 2)).any()
    assert len(np.unique(first, axis=0)) == 2 * CHUNK


def _fingerprint() -> str:
    spec = KernelBankSpec(noise=0.25, sigma=(0.3, 5.0), size=15, reduction=1)
    kernels = [draw_range(spec, family, 0, CHUNK)[0] for family in FAMILIES]
    return hashlib.sha256(np.concatenate(kernels).tobytes()).hexdigest()


def test_other_processor_features_give_the_same_bits():
    """NumPy picks its routines by processor; kernels must not show which. The parent uses all it has."""
    baseline = "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR X86_V3 X86_V4"
    found = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    disabled = " ".join(f for f in baseline.split() if f in found)
    if not disabled:
        pytest.skip("this processor has no features beyond NumPy's baseline to switch off")
    code = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import test_sampling; print(test_sampling._fingerprint())"  # noqa: PTH120, E501
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": disabled}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == _fingerprint()


@settings(max_examples=60)
@given(st.lists(st.floats(-700, 700), min_size=1, max_size=50))
def test_portable_exponential(values):
    x = np.array(values)
    np.testing.assert_allclose(portable.exp(x), np.exp(x), rtol=1e-15)


def test_portable_log_uniform():
    values = portable.log_uniform(philox().random(20_000), 0.1, 10.0)
    assert values.min() >= 0.1
    assert values.max() <= 10
    np.testing.assert_allclose(np.histogram(np.log10(values), 4, (-1, 1))[0] / 20_000, 0.25, atol=0.015)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid_and_draw(preset):
    spec = KernelBankSpec.model_validate(PRESETS[preset])
    kernels, drawn = draw_range(spec, "gaussian", 0, 64)
    assert kernels.shape == (64, spec.size, spec.size)
    assert drawn["sigma_along"].min() >= np.float32(spec.sigma[0])
    if spec.isotropic == 1:
        np.testing.assert_array_equal(drawn["sigma_along"], drawn["sigma_across"])


def test_presets_give_way_to_explicit_settings():
    assert preset_spec("dan1-x2", {"gaussian": 7}) == KernelBankSpec.model_validate(
        PRESETS["dan1-x2"] | {"gaussian": 7}
    )
    with pytest.raises(BadRequestError, match=r"preset dan2-x2 with components: .* 121 pixels"):
        preset_spec("dan2-x2", {"components": 300})
    with pytest.raises(BadRequestError, match="preset dan9: unknown"):
        preset_spec("dan9", {})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 20}, "even"),
        ({"size": 5}, "motion kernels need at least 7"),
        ({"memory": (2.0, 1.0)}, "lower bound comes first"),
        ({"gaussian": -1}, "greater than or equal to 0"),
        ({"gaussian": 0, "motion": 0}, "all 0"),
        ({"sigma": (3.0, 1.0)}, "lower bound comes first"),
        ({"components": 500}, "441 pixels"),
        ({"sigmas": (1.0, 2.0)}, "Extra inputs"),
    ],
)
def test_spec_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        KernelBankSpec(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma_law": "Variance"}, "sigma_law 'Variance': unknown; choose from sigma, variance, log"),
        ({"isotropic": 25}, "isotropic 25: a share from 0 to 1 is expected"),
        ({"isotropic": float("nan")}, "isotropic nan: "),
        ({"noise": -0.25}, "noise -0.25: a number from 0 to 1 is expected"),
        ({"noise": float("nan")}, "noise nan: "),
    ],
)
def test_gaussians_of_an_unknown_law_are_refused(settings, message):
    with pytest.raises(BadRequestError, match=message):
        sample_gaussian(2, 9, rng=np.random.default_rng(0), **settings)
