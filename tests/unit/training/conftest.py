"""A kernel code and a batch that fit the small learner."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kernels_bank import KernelCodec, sample_gaussian
from pipeline.data.batch import Batch
from pipeline.degrade import degrade


@pytest.fixture(scope="session")
def codec() -> KernelCodec:
    return KernelCodec.fit(sample_gaussian(400, 11, rng=np.random.default_rng(0)), components=8)


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    # Smooth random images: white noise cannot be restored from its blurred version.
    hr = torch.nn.functional.interpolate(torch.rand(4, 3, 12, 12, generator=generator), 48, mode="bicubic").clamp(0, 1)
    kernel = torch.from_numpy(sample_gaussian(4, 11, rng=np.random.default_rng(1)))
    return Batch(
        lr=degrade(hr, kernel, 2), hr=hr, kernel=kernel, sigma=torch.zeros(4), scale=2, keys=tuple("abcd"), replaced=0
    )
