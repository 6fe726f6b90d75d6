"""A small untrained model, and photographs as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from kernels_bank import KernelCodec, sample_gaussian
from pipeline.images.encode import encode_png
from pipeline.model import BlindUSRNet
from pipeline.model.weights import save_model
from pipeline.model_config import KernelConfig, ModelConfig, RestorerConfig
from pipeline.serving.model import LiveModel


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A blind x2 model, untrained: it already deblurs by its data steps."""
    torch.manual_seed(0)
    codec = KernelCodec.fit(sample_gaussian(50, 11, rng=np.random.default_rng(0)), components=4)
    config = ModelConfig(
        restorer=RestorerConfig(unfoldings=2, widths=(4, 4, 4, 4), residual_blocks=1, global_skip=True),
        kernel=KernelConfig(rounds=1),
    )
    path = tmp_path_factory.mktemp("model") / "small"
    path.mkdir()
    save_model(BlindUSRNet(config, codec), path, {})
    return path


@pytest.fixture(scope="session")
def live(folder) -> LiveModel:
    return LiveModel(str(folder))


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    return data.chelsea()[60:108, 100:140]


@pytest.fixture(scope="session")
def png(photo) -> bytes:
    return encode_png(photo)
