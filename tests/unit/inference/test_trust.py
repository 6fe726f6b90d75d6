"""A restoration is mixed with a plain enlargement as far as it is not trusted: what is looked at, and what is done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from kernels_bank.runtime.errors import ArtefactError, BadRequestError
from pipeline.inference import Restorer, trust
from pipeline.inference.trust import FEATURES, Evidence, TrustNet, features, mix
from pipeline.model.upsample import upsample
from pipeline.shipped import FOR_PHOTOGRAPHS, shipped_folder

SEEN = Evidence(2, 0.01, 0.0, 0.005, 1.5, np.array([0.1, 0.2, 0.3, 0.4]), refined=False)
RANDOM = np.random.default_rng(4)
LR = RANDOM.random((37, 29, 3)).astype(np.float32)


def enlarged(lr: np.ndarray, scale: int) -> np.ndarray:
    planes = torch.from_numpy(lr).permute(2, 0, 1)[None]
    return upsample(planes, scale, "bicubic", "centre")[0].clamp(0, 1).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("rows", [5, 16, 128])
def test_a_mixture_lies_between_its_ends_whatever_the_strips(scale: int, rows: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trust, "_ROWS", rows)
    restored = RANDOM.random((37 * scale, 29 * scale, 3)).astype(np.float32)
    for w in (0.0, 0.3, 1.0):
        mixed = restored.copy()
        mix(LR, mixed, w, scale)
        plain = enlarged(LR, scale)
        np.testing.assert_allclose(mixed, plain + w * (restored - plain), atol=1e-5)


def test_what_is_looked_at_does_not_hang_on_the_strips(monkeypatch: pytest.MonkeyPatch):
    lr = RANDOM.random((260, 40, 3)).astype(np.float32)
    restored = (enlarged(lr, 2) + 0.05 * RANDOM.standard_normal((520, 80, 3))).clip(0, 1).astype(np.float32)
    values = []
    for rows in (128, 1000):
        monkeypatch.setattr(trust, "_ROWS", rows)
        values.append(features(lr, restored, SEEN))
    np.testing.assert_allclose(*values, atol=0.01)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 9, 3), (8, 2, 3)])
def test_the_smallest_pictures_have_features_too(shape: tuple[int, int, int]):
    lr = np.full(shape, 0.5, np.float32)
    assert np.isfinite(features(lr, np.full((2 * shape[0], 2 * shape[1], 3), 0.5, np.float32), SEEN)).all()


def test_features_are_what_they_are_called():
    plain = enlarged(LR, 2)
    beyond = plain.copy()
    beyond[10, 10] = 2.0
    found = dict(zip(FEATURES, features(LR, beyond, SEEN), strict=True))
    changed = np.sqrt(np.square(beyond - plain).mean())
    np.testing.assert_allclose(found["changed_by"], np.log(changed + 1e-6), rtol=1e-4)
    local = plain[8:13, 8:13].max((0, 1))
    above = np.sqrt(np.square(2 - local).sum() / plain.size)
    np.testing.assert_allclose(found["overshoot_by"], np.log(above + 1.01e-4), rtol=1e-3)
    assert found["limits"] >= 3 / plain.size
    assert (found["scale_2"], found["scale_4"], found["area"]) == (1, 0, 0.2)


def net(logit: float, refined: float | None = None) -> TrustNet:
    """Trusts every picture alike, but for those whose kernel was refined."""
    n, last = len(FEATURES), np.array([[logit], [logit if refined is None else refined]])
    return TrustNet(
        np.zeros((2, n)), np.ones((2, n)), np.zeros((2, 1, n, 2)), np.zeros((2, 1, 2)), np.zeros((2, 1, 2)), last, "0"
    )


@pytest.mark.parametrize(("logit", "expected"), [(9, 1.0), (-9, 0.0), (0, 0.5)])
def test_near_certainty_is_certainty(logit: float, expected: float):
    assert net(logit)(np.zeros(len(FEATURES))) == expected


def test_refined_kernels_are_judged_by_a_set_of_their_own():
    kernel_steps = np.zeros(len(FEATURES))
    kernel_steps[FEATURES.index("refined")] = 1
    assert (net(9, -9)(np.zeros(len(FEATURES))), net(9, -9)(kernel_steps)) == (1, 0)


def test_a_net_is_the_mean_over_its_nets():
    n, tensors = len(FEATURES), {}
    layers = [torch.nn.Sequential(torch.nn.Linear(n, 5), torch.nn.GELU(), torch.nn.Linear(5, 1)) for _ in range(3)]
    tensors = {
        "mean": RANDOM.random(n),
        "std": RANDOM.random(n) + 0.5,
        "hidden": np.ascontiguousarray([layer[0].weight.detach().numpy().T for layer in layers]),
        "hidden_bias": np.stack([layer[0].bias.detach().numpy() for layer in layers]),
        "out": np.stack([layer[2].weight.detach().numpy()[0] for layer in layers]),
        "out_bias": np.stack([layer[2].bias.detach().numpy()[0] for layer in layers]),
    }
    found = TrustNet.parse(save(tensors, {"features": ",".join(FEATURES)}), "x")
    x = RANDOM.random(n)
    given = torch.from_numpy(((x - tensors["mean"]) / tensors["std"]).clip(-3, 3)).float()
    with torch.no_grad():
        expected = float(torch.stack([layer(given).sigmoid() for layer in layers]).mean())
    np.testing.assert_allclose(found(x), expected, rtol=1e-5)
    # That file has one set for both kinds of kernels; files have two now.
    both = {name: np.stack((np.full_like(value, 9), value)) for name, value in tensors.items()}
    x[FEATURES.index("refined")] = 1
    two = TrustNet.parse(save(both, {"features": ",".join(FEATURES)}), "x")
    np.testing.assert_allclose(two(x), found(x), rtol=1e-6)
    with pytest.raises(ArtefactError, match="other features"):
        TrustNet.parse(save(tensors, {"features": "a,b"}), "x")
    for damaged in (b"", b"\0" * 40, save({"mean": tensors["mean"]}, {"features": ",".join(FEATURES)})):
        with pytest.raises(ArtefactError, match="x: "):
            TrustNet.parse(damaged, "x")


@pytest.fixture(scope="module")
def model() -> Restorer:
    return Restorer.load(FOR_PHOTOGRAPHS, torch.device("cpu"))


def test_the_estimate_is_judged_a_given_kernel_is_not(model: Restorer, monkeypatch: pytest.MonkeyPatch):
    image = (LR * 255).round().astype(np.uint8)
    assert model.trust is not None
    monkeypatch.setattr(model, "trust", replace(net(-9), digest="1"))
    found = model.restore(image, 2)
    assert found.trust == 0
    assert found.facts()["trust"] == 0
    np.testing.assert_array_equal(found.image, (enlarged(image.astype(np.float32) / 255, 2) * 255).round())
    given = model.restore(image, 2, found.sigma, found.kernel)
    assert given.trust is None
    np.testing.assert_array_equal(model.restore(image, 2, trust=1).image, given.image)
    half = model.restore(image, 2, found.sigma, found.kernel, trust=0.5).image
    assert np.abs(half - (given.image.astype(float) + found.image) / 2).max() <= 1
    for wrong in (-0.1, 1.1):
        with pytest.raises(BadRequestError, match="trust"):
            model.restore(image, 2, trust=wrong)


def test_a_damaged_trust_net_is_a_damaged_model(tmp_path: Path):
    import shutil

    shutil.copytree(shipped_folder(FOR_PHOTOGRAPHS), tmp_path / "model")
    data = bytearray((tmp_path / "model" / trust.TRUST).read_bytes())
    data[-1] ^= 1
    (tmp_path / "model" / trust.TRUST).write_bytes(data)
    with pytest.raises(ArtefactError, match=r"trust\.safetensors"):
        Restorer.load(tmp_path / "model")
