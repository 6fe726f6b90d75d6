"""Small models: an untrained one that deblurs by its data steps, and one that changes nothing at scale 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from kernels_bank import KernelCodec, sample_gaussian
from pipeline.inference import Restorer
from pipeline.model import BlindUSRNet, USRNet
from pipeline.model.weights import save_model
from pipeline.model_config import KernelConfig, ModelConfig, RestorerConfig


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """An untrained blind x2 model on disk: it already deblurs by its data steps."""
    torch.manual_seed(0)
    codec = KernelCodec.fit(sample_gaussian(300, 13, rng=np.random.default_rng(0)), components=8)
    config = ModelConfig(
        restorer=RestorerConfig(unfoldings=3, widths=(4, 4, 8, 8), residual_blocks=1, global_skip=True),
        kernel=KernelConfig(rounds=1),
    )
    path = tmp_path_factory.mktemp("model")
    save_model(BlindUSRNet(config, codec), path, {})
    return path


@pytest.fixture(scope="session")
def restorer(folder) -> Restorer:
    return Restorer.load(folder, device=torch.device("cpu"))


@pytest.fixture(scope="session")
def lively(restorer) -> Restorer:
    """A random prior that really changes the image, so that its own reach counts; x2, non-blind."""
    torch.manual_seed(1)
    network = USRNet(RestorerConfig(unfoldings=3, widths=(4, 4, 8, 8), residual_blocks=1, global_skip=True))
    with torch.no_grad():
        for weight in network.p.m_tail.parameters():
            weight.normal_(std=0.05)
    return Restorer(network, uri="lively", digest="", device=torch.device("cpu"))


@pytest.fixture(scope="session")
def unchanging(tmp_path_factory) -> Path:
    """A scale-1 model whose prior is the identity: with a delta kernel it gives back what it gets."""
    path = tmp_path_factory.mktemp("unchanging")
    save_model(USRNet(RestorerConfig(unfoldings=1, widths=(4, 4, 4, 4), residual_blocks=1)), path, {})
    return path


@pytest.fixture(scope="session")
def delta(tmp_path_factory) -> Path:
    """The kernel that blurs nothing, as a file."""
    path = tmp_path_factory.mktemp("kernel") / "delta.npy"
    kernel = np.zeros((3, 3), np.float32)
    kernel[1, 1] = 1
    np.save(path, kernel)
    return path


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    return data.chelsea()[60:124, 100:172]
