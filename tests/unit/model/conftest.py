"""What the network's tests compare against, written from the papers in the plainest form."""

import numpy as np
import pytest
import torch

from kernels_bank.codec import KernelCodec
from pipeline.config import ModelConfig


def published_data_step(x, y, kernel, alpha, scale):
    """USRNet's Eq. 5-7 with full complex FFTs, divided by alpha as in the paper; (B, k, k) kernels."""
    height, width = x.shape[-2:]
    size = kernel.shape[-1]
    padded = torch.zeros(len(kernel), 1, height, width, dtype=x.dtype)
    padded[..., :size, :size] = kernel[:, None]
    FB = torch.fft.fft2(padded.roll((-(size // 2), -(size // 2)), (-2, -1)))
    spread = torch.zeros_like(x)
    spread[..., ::scale, ::scale] = y
    FR = FB.conj() * torch.fft.fft2(spread) + torch.fft.fft2(alpha * x)

    def fold(spectrum):
        blocks = spectrum.reshape(*spectrum.shape[:2], scale, height // scale, scale, width // scale)
        return blocks.mean((2, 4))

    quotient = fold(FB * FR) / (fold(FB.abs() ** 2) + alpha)
    return torch.fft.ifft2((FR - FB.conj() * quotient.repeat(1, 1, scale, scale)) / alpha).real


@pytest.fixture(scope="session")
def reference_step():
    return published_data_step


@pytest.fixture(scope="session")
def draw_kernels():
    def draw(count, size, seed=0, dtype=torch.float32):
        drawn = np.random.default_rng(seed).random((count, size, size)) ** 4
        return torch.from_numpy(drawn / drawn.sum((1, 2), keepdims=True)).to(dtype)

    return draw


@pytest.fixture(scope="session")
def codec():
    """Ten components of random anisotropic 11 x 11 Gaussians."""
    rng = np.random.default_rng(0)
    row, column = np.mgrid[-5:6, -5:6]
    made = []
    for _ in range(200):
        angle, (wide, narrow) = rng.uniform(0, np.pi), rng.uniform(0.6, 3, 2)
        u, v = column * np.cos(angle) + row * np.sin(angle), row * np.cos(angle) - column * np.sin(angle)
        made.append(np.exp(-0.5 * ((u / wide) ** 2 + (v / narrow) ** 2)))
    kernels = np.stack(made)
    return KernelCodec.fit((kernels / kernels.sum((1, 2), keepdims=True)).astype(np.float32), components=10)


@pytest.fixture
def small():
    """A network of a few thousand parameters with every part of the real one."""

    def make(**changes):
        settings = {
            "unfoldings": 4,
            "widths": (4, 6, 8, 8),
            "residual_blocks": 1,
            "hyper_hidden": 8,
            "global_skip": True,
            "estimator_channels": 8,
            "estimator_blocks": 2,
            "rounds": 1,
        }
        return ModelConfig(**(settings | changes))

    return make
