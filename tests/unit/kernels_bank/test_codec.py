"""The codec: PCA laws, the simplex projection against an oracle, gradients, and its file."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load, save
from scipy.optimize import minimize

from kernels_bank import KernelCodec
from kernels_bank.coding import decode_codes, encode_codes
from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from kernels_bank.simplex import project_simplex, project_simplex_tensor


@pytest.fixture(scope="module")
def kernels() -> np.ndarray:
    rng = np.random.default_rng(0)
    raw = rng.gamma(0.3, size=(400, 7, 7))
    return (raw / raw.sum(axis=(1, 2), keepdims=True)).astype(np.float32)


def test_projection_solves_its_minimisation():
    rng = np.random.default_rng(1)
    for values in rng.normal(0, 0.7, (5, 6)):
        solved = minimize(
            lambda p, v=values: ((p - v) ** 2).sum(),
            np.full(6, 1 / 6),
            bounds=[(0, None)] * 6,
            constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
            options={"ftol": 1e-14},
        )
        np.testing.assert_allclose(project_simplex(values), solved.x, atol=1e-6)


@settings(max_examples=200)
@given(hnp.arrays(np.float64, (3, 9), elements=st.floats(-50, 50)))
def test_projection_laws(values):
    projected = project_simplex(values)
    assert (projected >= 0).all()
    np.testing.assert_allclose(projected.sum(-1), 1, atol=1e-12)
    np.testing.assert_allclose(project_simplex(projected), projected, atol=1e-12)
    # Optimality (variational inequality): no vertex of the simplex lies on the far side.
    gap = values - projected
    assert ((gap * projected).sum(-1) >= gap.max(-1) - 1e-9).all()
    np.testing.assert_allclose(project_simplex_tensor(torch.from_numpy(values)).numpy(), projected, atol=1e-12)


def test_projection_gradient():
    values = torch.randn(4, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.3
    assert torch.autograd.gradcheck(project_simplex_tensor, values.requires_grad_())


def test_basis_is_orthonormal_and_codes_are_standardised(kernels):
    codec = KernelCodec.fit(kernels, components=20)
    assert (codec.size, codec.components) == (7, 20)
    np.testing.assert_allclose(codec.basis.T @ codec.basis, np.eye(20), atol=1e-5)
    codes = codec.encode(kernels)
    np.testing.assert_allclose(codes.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(codes.std(0), 1, atol=1e-4)
    np.testing.assert_allclose(codec.basis.sum(0), 0, atol=1e-5)  # kernels sum to 1: decoding needs the mean


def test_fit_equals_svd(kernels):
    codec = KernelCodec.fit(kernels, components=5)
    flat = kernels.reshape(len(kernels), -1).astype(np.float64)
    _, singular, rows = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    np.testing.assert_allclose(np.abs((codec.basis * rows[:5].T).sum(0)), 1, atol=1e-5)
    np.testing.assert_allclose(codec.spectrum[:48], singular[:48] ** 2 / len(kernels), rtol=1e-9)


def test_all_components_are_lossless(kernels):
    codec = KernelCodec.fit(kernels, components=49)
    np.testing.assert_allclose(codec.decode(codec.encode(kernels)), kernels, atol=2e-6)


def test_decode_of_any_code_is_a_kernel(kernels):
    codec = KernelCodec.fit(kernels, components=10)
    decoded = codec.decode(np.random.default_rng(2).normal(0, 5, (50, 10)).astype(np.float32))
    assert decoded.dtype == np.float32
    assert (decoded >= 0).all()
    np.testing.assert_allclose(decoded.sum((1, 2)), 1, atol=1e-5)


def test_more_components_lose_less(kernels):
    losses = []
    for components in (2, 8, 24, 48):
        codec = KernelCodec.fit(kernels, components=components)
        losses.append(((codec.decode(codec.encode(kernels)) - kernels) ** 2).mean())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-10 < losses[0]


def test_explained_variance_is_met_and_minimal(kernels):
    codec = KernelCodec.fit(kernels, explained_variance=0.8)
    assert (
        codec.explained_variance >= 0.8 > KernelCodec.fit(kernels, components=codec.components - 1).explained_variance
    )
    assert KernelCodec.fit(kernels, components=3, explained_variance=0.8).components == 3


def test_truncated_is_the_shorter_fit(kernels):
    long, short = (KernelCodec.fit(kernels, components=c) for c in (12, 5))
    assert long.truncated(5).digest == short.digest
    with pytest.raises(BadRequestError, match="has 12"):
        long.truncated(13)


def test_plain_form_is_dans(kernels):
    plain, standard = (KernelCodec.fit(kernels, components=6, standardize=s) for s in (False, True))
    np.testing.assert_array_equal(plain.std, 1)
    np.testing.assert_allclose(plain.encode(kernels), standard.encode(kernels) * standard.std, atol=1e-6)
    np.testing.assert_allclose(
        plain.decode(plain.encode(kernels)), standard.decode(standard.encode(kernels)), atol=1e-6
    )


def test_moments_add_up(kernels):
    halves = [half.reshape(200, -1).astype(np.float64) for half in (kernels[:200], kernels[200:])]
    merged = KernelCodec.from_moments(400, sum(h.sum(0) for h in halves), sum(h.T @ h for h in halves), components=5)
    whole = KernelCodec.fit(kernels, components=5)
    np.testing.assert_allclose(merged.basis, whole.basis, atol=1e-6)
    np.testing.assert_allclose(merged.mean, whole.mean, atol=1e-9)


def test_one_repeated_kernel_is_no_special_case():
    delta = np.zeros((3, 5, 5), np.float32)
    delta[:, 2, 2] = 1
    codec = KernelCodec.fit(delta, components=4)
    np.testing.assert_allclose(codec.decode(codec.encode(delta)), delta, atol=1e-6)


def test_torch_agrees_with_numpy_and_is_differentiable(kernels):
    codec = KernelCodec.fit(kernels, components=10)
    tensor = torch.from_numpy(kernels)
    codes = codec.encode(tensor)
    np.testing.assert_allclose(codes.numpy(), codec.encode(kernels), atol=1e-4)
    np.testing.assert_allclose(codec.decode(codes).numpy(), codec.decode(codec.encode(kernels)), atol=1e-5)
    double = codes[:2].double().requires_grad_()
    assert torch.autograd.gradcheck(codec.decode, double)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(codec.decode(codes), codec.decode(codes).float())
        buffers = [torch.from_numpy(a) for a in (codec.mean, codec.basis, codec.std)]
        again = encode_codes(decode_codes(codes, *buffers, codec.size), *buffers)
    assert again.dtype == torch.float32


def test_leading_dimensions_pass_through(kernels):
    codec = KernelCodec.fit(kernels, components=4)
    codes = codec.encode(kernels.reshape(20, 20, 7, 7))
    assert codes.shape == (20, 20, 4)
    assert codec.decode(codes).shape == (20, 20, 7, 7)
    np.testing.assert_array_equal(codec.encode(kernels[0]), codec.encode(kernels[:1])[0])


def test_file_round_trip_keeps_the_digest(kernels, tmp_path):
    codec = KernelCodec.fit(kernels, components=4, bank_digest="abc")
    codec.save(tmp_path / "codec.safetensors")
    loaded = KernelCodec.load(f"file://{tmp_path}/codec.safetensors")
    assert (loaded.digest, loaded.bank_digest) == (codec.digest, "abc")
    np.testing.assert_array_equal(loaded.encode(kernels), codec.encode(kernels))
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "codec.safetensors").read_bytes()
    assert KernelCodec.fit(kernels, components=4, bank_digest="abd").digest != codec.digest


def test_damaged_files_are_refused(kernels, tmp_path):
    path = tmp_path / "codec.safetensors"
    with pytest.raises(ArtefactError, match="no such file"):
        KernelCodec.load(path)
    codec = KernelCodec.fit(kernels, components=4)
    codec.save(path)
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[-9] ^= 1
    for damaged, message in (
        (bytes(flipped), "does not match its digest"),
        (good[:-5], "not a readable"),
        (b"hello", "not a readable"),
        (save(load(good), metadata={"kernel-codec": '{"schema": "99"}'}), "schema '99' is unknown"),
        (save(load(good)), "not a kernel codec"),
        (save({"mean": codec.mean}, metadata={"kernel-codec": '{"schema": "1"}'}), "lacks basis, spectrum, std"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ArtefactError, match=message):
            KernelCodec.load(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"components": 0}, "between 1 and 49"), ({"explained_variance": 1.5}, r"share in \(0, 1\]")],
)
def test_settings_out_of_range(kernels, arguments, message):
    with pytest.raises(BadRequestError, match=message):
        KernelCodec.fit(kernels, **arguments)


def test_wrong_shapes(kernels):
    codec = KernelCodec.fit(kernels, components=4)
    with pytest.raises(BadRequestError, match="encodes 7 x 7"):
        codec.encode(kernels[:, 1:, 1:])
    with pytest.raises(BadRequestError, match="has 4 components"):
        codec.decode(np.zeros((2, 5)))
    with pytest.raises(BadRequestError, match="N >= 1"):
        KernelCodec.fit(np.zeros((0, 7, 7)))


def test_import_is_cheap():
    heavy = ("torch", "ray", "scipy", "pyarrow", "matplotlib")
    code = f"import sys, kernels_bank; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_kernels_that_are_not_finite_have_no_codec():
    with pytest.raises(BadRequestError, match="a codec needs finite kernels"):
        KernelCodec.fit(np.full((3, 5, 5), np.nan), components=2)
