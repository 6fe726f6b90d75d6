"""The kernel that edges show: which way round it is, at every scale and size."""

import itertools

import numpy as np
import pytest
import torch
from skimage import data

from kernels_bank import sample_motion
from pipeline.degrade import degrade
from pipeline.evaluation.metrics import compare_kernels
from pipeline.model.edge_start import edge_kernel


@pytest.fixture(scope="module")
def blurred():
    """Photographs with sharp edges, each shaken in its own way, in 8 bit at x2; and the kernels."""
    pictures = [data.astronaut()[100:308, 120:328], data.coffee()[90:298, 160:368], data.rocket()[150:358, 250:458]]
    hr = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    kernels = torch.from_numpy(sample_motion(3, 25, rng=np.random.Generator(np.random.Philox(4)), extent=(14.0, 20.0)))
    return (degrade(hr, kernels, 2) * 255).round() / 255, kernels


def test_it_tells_a_shake_from_its_mirror_image(blurred):
    """What a power spectrum cannot: in the mean it is much nearer to the one than to the other."""
    lr, kernels = blurred
    found = edge_kernel(lr, 25, 2, torch.zeros(3)).numpy()
    right, wrong = (
        [compare_kernels(one, other).correlation for one, other in zip(found, truth, strict=True)]
        for truth in (kernels.numpy(), kernels.flip(-2, -1).numpy())
    )
    assert np.mean(right) > 0.6
    assert np.mean(right) > np.mean(wrong) + 0.1


def test_each_image_of_a_batch_is_looked_at_alone(blurred):
    """But for rounding: a gradient at the threshold may be kept in one and not in the other."""
    lr, _ = blurred
    sigma = torch.tensor([0.0, 0.01, 0.03])
    together = edge_kernel(lr, 25, 2, sigma)
    for number in range(3):
        alone = edge_kernel(lr[number : number + 1], 25, 2, sigma[number : number + 1])
        torch.testing.assert_close(together[number : number + 1], alone, atol=0.01, rtol=0)


@pytest.mark.parametrize(("size", "scale"), list(itertools.product([3, 11, 25], [1, 2, 3, 4])))
def test_it_is_a_kernel_of_any_size_in_the_middle(size, scale):
    noise = torch.rand(2, 3, 25, 31, generator=torch.Generator().manual_seed(size + scale))
    kernel = edge_kernel(noise, size, scale, torch.zeros(2))
    assert kernel.shape == (2, size, size)
    assert (kernel >= 0).all()
    torch.testing.assert_close(kernel.sum((1, 2)), torch.ones(2))
    place = torch.arange(size) - size // 2.0
    for axis in (1, 2):
        assert ((kernel.sum(axis) * place).sum(1).abs() <= size / 4).all()


def test_an_image_without_edges_shows_a_point():
    kernel = edge_kernel(torch.full((1, 3, 32, 32), 0.5), 9, 2, torch.zeros(1))
    assert kernel[0, 4, 4] > 0.2
    torch.testing.assert_close(kernel.sum(), torch.tensor(1.0))
