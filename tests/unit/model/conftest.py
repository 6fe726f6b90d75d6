"""Networks, kernels and references of the network's tests."""

import numpy as np
import pytest
import torch

from kernels_bank.codec import KernelCodec
from pipeline.model_config import EstimatorConfig, KernelConfig, ModelConfig, RestorerConfig
from tests.published import published_data_step


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

    def make(scales=(2,), **changes):
        """Settings of either part by name."""
        restorer = {"unfoldings": 4, "widths": (4, 6, 8, 8), "residual_blocks": 1, "hyper_hidden": 8}
        restorer |= {name: value for name, value in changes.items() if name in RestorerConfig.model_fields}
        kernel = {"estimator": EstimatorConfig(channels=8, blocks=2), "rounds": 1}
        kernel |= {name: value for name, value in changes.items() if name not in RestorerConfig.model_fields}
        return ModelConfig(scales=scales, restorer=RestorerConfig(**restorer), kernel=KernelConfig(**kernel))

    return make
