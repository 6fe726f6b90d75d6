"""The kernel step against the equations it solves, written out; and what refining with it does."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from kernels_bank import KernelCodec, sample_gaussian, sample_motion
from kernels_bank.centring import recentre
from pipeline.degrade import degrade
from pipeline.model import BlindUSRNet
from pipeline.model.edge_start import edge_kernel
from pipeline.model.guard import Acceptance
from pipeline.model.kernel_step import kernel_step, normal_equations, project, refine_kernel
from pipeline.model_config import KernelConfig, ModelConfig, RestorerConfig


def philox(seed):
    return np.random.Generator(np.random.Philox(seed))


def picture(side=(48, 36), channels=2, seed=0):
    """Random edges: every kernel shows in them."""
    torch.manual_seed(seed)
    return (torch.randn(1, channels, *side, dtype=torch.float64).cumsum(-1) > 0).double()


def gradient(image):
    return torch.stack((image - image.roll(1, -1), image - image.roll(1, -2)))


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_normal_equations_are_those_of_the_degradation(scale):
    """Column by column: the degradation of x by each single-pixel kernel."""
    x, size = picture(), 5
    y = torch.rand(1, 2, 48 // scale, 36 // scale, dtype=torch.float64)
    columns = torch.eye(size * size, dtype=torch.float64).reshape(-1, size, size)
    matrix = torch.stack([gradient(degrade(x, column[None], scale)).flatten() for column in columns], 1)
    normal, right = normal_equations(x, y, size, scale)
    torch.testing.assert_close(normal[0], matrix.T @ matrix, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(right[0], matrix.T @ gradient(y).flatten(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_the_sharp_image_gives_the_true_kernel(scale):
    kernel = torch.from_numpy(sample_motion(1, 9, rng=philox(3))).double()
    x = picture((144, 144), 3)
    start = torch.full((1, 9, 9), 1 / 81, dtype=torch.float64)
    found = kernel_step(x, degrade(x, kernel, scale), start, scale, ridge=1e-8)
    assert float((found - kernel).abs().sum()) < 0.05
    assert float((start - kernel).abs().sum()) > 0.5


def test_the_solution_is_that_of_non_negative_least_squares():
    """Against SciPy's active-set solver on the same equations, the sum held to 1 by a heavy row."""
    x, size, ridge = picture((40, 40), 1), 5, 1e-3
    torch.manual_seed(1)
    y = degrade(x, torch.from_numpy(sample_gaussian(1, 5, rng=philox(1))).double(), 2)
    y = y + 0.05 * torch.randn_like(y)
    found = kernel_step(x, y, torch.full((1, size, size), 1 / 25, dtype=torch.float64), 2, ridge)[0].flatten().numpy()
    normal, right = (part[0].numpy() for part in normal_equations(x, y, size, 2))
    level = normal.diagonal().mean()
    root = np.linalg.cholesky(normal / level + ridge * np.eye(size * size))
    heavy = 1e4 * np.ones((1, size * size))
    expected, _ = nnls(
        np.vstack((root.T, heavy)), np.concatenate((np.linalg.solve(root, right / level), [1e4])), maxiter=1000
    )
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_kernel_comes_out_as_one():
    x, y = torch.rand(3, 3, 32, 32), torch.rand(3, 3, 16, 16)
    found = kernel_step(x, y, torch.full((3, 7, 7), 1 / 49), 2)
    assert found.shape == (3, 7, 7)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(3))


def test_images_of_a_batch_do_not_mix():
    x, y, start = torch.rand(3, 3, 32, 32), torch.rand(3, 3, 16, 16), torch.full((3, 7, 7), 1 / 49)
    each = torch.cat([kernel_step(x[i : i + 1], y[i : i + 1], start[i : i + 1], 2) for i in range(3)])
    torch.testing.assert_close(kernel_step(x, y, start, 2), each, atol=1e-5, rtol=1e-4)


def test_a_flat_image_says_nothing_and_breaks_nothing():
    start = torch.zeros(1, 5, 5)
    start[0, 2, 2] = 1
    found = kernel_step(torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 8, 8), 0.5), start, 2)
    assert torch.isfinite(found).all()
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)


def test_projection_is_the_nearest_point_of_the_simplex():
    torch.manual_seed(0)
    values = torch.randn(20, 6, dtype=torch.float64)
    found = project(values)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum(-1), torch.ones(20, dtype=torch.float64))
    # Optimality: no corner of the simplex lies in the direction of what was cut off.
    inward = (values - found)[:, None] * (torch.eye(6, dtype=torch.float64) - found[:, None])
    assert float(inward.sum(-1).max()) < 1e-12


@pytest.fixture
def blind():
    codec = KernelCodec.fit(sample_gaussian(300, 11, rng=philox(0)), components=6)
    config = ModelConfig(
        restorer=RestorerConfig(unfoldings=2, widths=(4, 4, 4, 4), residual_blocks=1, x0="nearest"),
        kernel=KernelConfig(rounds=0, steps=3, initial="mean"),
    )
    torch.manual_seed(0)
    return BlindUSRNet(config, codec).eval()


def test_without_rounds_the_initial_kernel_stands_and_there_is_no_estimator(blind):
    lr = torch.rand(2, 3, 12, 12)
    out = blind(lr, 2, 0.0)
    assert not [name for name in blind.state_dict() if name.startswith("estimator")]
    torch.testing.assert_close(out.kernel, blind.initial_kernel(lr, 2, 0.0))
    torch.testing.assert_close(out.sr, blind.restore(lr, out.kernel, 2, 0.0))
    assert len(out.rounds) == 1


def test_refining_is_one_more_round_written_out(blind, monkeypatch):
    lr, sigma = torch.rand(2, 3, 24, 24), torch.tensor([0.0, 0.05])
    monkeypatch.setattr("pipeline.model.blind.acceptance", lambda *_, **__: (Acceptance(float("inf")),))
    out = blind.infer(lr, 2, sigma)
    kernel = edge_kernel(lr, blind.kernel_size, 2, sigma)
    for told in (0.1, 0.1 * 0.1**0.5, 0.01):
        state = blind.restorer.start(lr, 2, sigma.clamp_min(told))
        sr = blind.restorer.unfold(state, blind.restorer.operator(kernel, state), 0, 1)  # of two unfoldings
        kernel = kernel_step(sr.clamp(0, 1), lr, kernel, 2)
    kernel = torch.from_numpy(recentre(kernel.numpy(), subpixel=False))
    torch.testing.assert_close(out.kernel, kernel)
    torch.testing.assert_close(out.sr, blind.restore(lr, kernel, 2, sigma))
    assert len(out.rounds) == 2
    assert out.kernel_round.tolist() == [1, 1]
    assert out.codes.shape == (2, 2, 6)


def test_the_guard_keeps_what_scores_better(blind):
    lr = torch.rand(2, 3, 24, 24)
    out = blind.infer(lr, 2, 0.0)
    for image, number in enumerate(out.kernel_round.tolist()):
        torch.testing.assert_close(out.kernel[image], out.rounds[number].kernel[image])


def test_refining_finds_a_motion_kernel_that_the_start_does_not_know():
    """The classical alternation with no learned part at all: data step, identity prior, kernel step."""
    kernel = torch.from_numpy(sample_motion(1, 9, rng=philox(5), extent=(6.0, 8.0)))
    x = picture((128, 128), 3).float()
    lr = degrade(x, kernel, 1)

    def sharp(kernel, sigma):
        return x  # a perfect prior

    start = torch.from_numpy(sample_gaussian(1, 9, rng=philox(6), sigma=(2.0, 2.5)))
    _, found = refine_kernel(sharp, lr, start, 1, torch.zeros(1), steps=2)
    before, after = (float((k - kernel).abs().sum()) for k in (start, found))
    assert after < 0.1 * before


@pytest.mark.parametrize(("size", "scale"), list(itertools.product([3, 7], [2, 3])))
def test_batches_of_any_odd_size(size, scale):
    x, y = torch.rand(2, 1, 12 * scale, 15 * scale), torch.rand(2, 1, 12, 15)
    assert kernel_step(x, y, torch.full((2, size, size), 1 / size**2), scale).shape == (2, size, size)
