"""What the estimator is given to start from: another model's kernel, in its own size and code."""

import numpy as np
import torch

from kernels_bank import KernelCodec, sample_gaussian
from pipeline.model import BlindUSRNet
from pipeline.model_config import KernelConfig, ModelConfig, RestorerConfig
from tools.article_starts import start_from


def test_a_larger_kernel_is_cut_about_its_middle_and_encoded():
    draw = np.random.Generator(np.random.Philox(0))
    codec = KernelCodec.fit(sample_gaussian(200, 9, rng=draw, sigma=(0.6, 1.2)), components=12)
    config = ModelConfig(restorer=RestorerConfig(widths=(2, 2, 2, 2)), kernel=KernelConfig(initial="delta", rounds=1))
    network = BlindUSRNet(config, codec).eval()
    small = torch.from_numpy(sample_gaussian(2, 9, rng=draw, sigma=(0.6, 1.2)))
    large = torch.nn.functional.pad(small, (2, 2, 2, 2)) * 0.9
    large[:, 0, 0] = 0.1  # what is cut off
    first = start_from(network, large)
    torch.testing.assert_close(first.blur, small)
    torch.testing.assert_close(first.code, network.encode(small))
    torch.testing.assert_close(network.decode(first.code), small, atol=0.01, rtol=0)
