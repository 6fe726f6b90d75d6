"""The prior of kernel steps: what it sees, what it may answer, and which steps it corrects."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from kernels_bank import KernelCodec, sample_gaussian
from pipeline.model import BlindUSRNet
from pipeline.model.kernel_prior import KernelPrior
from pipeline.model.kernel_step import CORRECTED, kernel_maps, kernel_step, normal_equations
from pipeline.model_config import KernelConfig, ModelConfig, RestorerConfig


def learned(seed=0):
    """A prior that changes kernels, as after some training."""
    torch.manual_seed(seed)
    prior = KernelPrior().eval()
    nn.init.normal_(prior.last.weight, std=0.2)
    return prior


def pair(batch=2, scale=2):
    torch.manual_seed(1)
    x, y = torch.rand(batch, 3, 48, 36), torch.rand(batch, 3, 48 // scale, 36 // scale)
    return x, y, torch.full((batch, 7, 7), 1 / 49)


def test_the_maps_are_the_step_two_free_solutions_and_what_the_step_began_with():
    """The free ones by NumPy, on the equations divided by their mean diagonal."""
    x, y, start = pair()
    maps = kernel_maps(x, y, start, 2)
    assert torch.equal(maps[:, 0], kernel_step(x, y, start, 2))
    assert torch.equal(maps[:, 3], start)
    normal, right = (part.double().numpy() for part in normal_equations(x, y, 7, 2))
    for image, (number, ridge) in itertools.product(range(2), [(1, 1e-2), (2, 1e-1)]):
        level = normal[image].diagonal().mean()
        free = np.linalg.solve(normal[image] / level + ridge * np.eye(49), right[image] / level)
        np.testing.assert_allclose(maps[image, number].flatten(), free, atol=1e-4)


def test_untrained_it_leaves_kernels_as_they_are():
    maps = kernel_maps(*pair(), 2)
    torch.testing.assert_close(KernelPrior()(maps, torch.zeros(2), 0.5, 2), maps[:, 0])


@pytest.mark.parametrize("seed", range(4))
def test_whatever_it_has_learned_it_answers_kernels(seed):
    torch.manual_seed(seed)
    found = learned(seed)(torch.randn(3, 4, 25, 25) / 20, torch.rand(3) / 10, 0.2, 3)
    assert found.shape == (3, 25, 25)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(3))


def test_a_kernel_of_which_nothing_is_left_stands():
    prior, maps = KernelPrior(), kernel_maps(*pair(), 2)
    nn.init.constant_(prior.last.bias, -1e3)
    torch.testing.assert_close(prior(maps, torch.zeros(2), 0.5, 2), maps[:, 0])


@torch.no_grad()
def test_kernels_of_a_batch_do_not_mix_and_may_be_of_several_scales():
    prior, maps = learned(), torch.rand(3, 4, 9, 9) / 50
    sigma, progress, scale = torch.tensor([0.0, 0.01, 0.03]), torch.tensor([0.2, 0.6, 1.0]), torch.tensor([2, 3, 4])
    together = prior(maps, sigma, progress, scale)
    for i in range(3):
        alone = prior(maps[i : i + 1], sigma[i : i + 1], float(progress[i]), int(scale[i]))
        torch.testing.assert_close(together[i : i + 1], alone)
    assert float((together - prior(maps, sigma, progress, 2)).abs().max()) > 1e-6, "it is told the scale"
    assert float((together - prior(maps, sigma + 0.05, progress, scale)).abs().max()) > 1e-6, "and the noise"


def test_refining_corrects_the_kernels_of_some_steps_written_out():
    codec = KernelCodec.fit(sample_gaussian(300, 11, rng=np.random.default_rng(0)), components=6)
    kernel = KernelConfig(rounds=0, steps=5, initial="mean", prior=True)
    torch.manual_seed(0)
    restorer = RestorerConfig(unfoldings=2, widths=(4, 4, 4, 4), residual_blocks=1, x0="nearest")
    net = BlindUSRNet(ModelConfig(restorer=restorer, kernel=kernel), codec).eval()
    net.prior = learned()
    lr, sigma, now = torch.rand(1, 3, 24, 24), torch.tensor([0.02]), torch.full((1, 11, 11), 1 / 121)
    with torch.no_grad():
        found = net.refine(lr, now, 2, sigma)
        for number, told in enumerate((0.1, 0.1 * 0.1**0.25, 0.1 * 0.1**0.5, 0.02, 0.02)):
            state = net.restorer.start(lr, 2, torch.tensor([told]))
            sharp = net.restorer.unfold(state, net.restorer.operator(now, state), 0, 1).clamp(0, 1)
            if number in CORRECTED:
                now = net.prior(kernel_maps(sharp, lr, now, 2), sigma, number / 4, 2)
            else:
                now = kernel_step(sharp, lr, now, 2)
            torch.testing.assert_close(found[number], now)
    assert set(CORRECTED) < set(range(5)), "the last word is the picture's"
