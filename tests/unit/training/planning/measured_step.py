"""A real training step on the CPU; prints the growth of resident memory at its peak over what was there before.

python measured_step.py MODEL_CONFIG_JSON BATCH PATCH SCALE
"""

import sys
from pathlib import Path

import numpy as np
import torch

from kernels_bank import KernelCodec, sample_gaussian
from pipeline.config import TrainConfig
from pipeline.model import BlindUSRNet
from pipeline.model_config import ModelConfig
from pipeline.training.objective import TrainingObjective


def status(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    torch.set_num_threads(1)
    config, (batch, patch, scale) = ModelConfig.model_validate_json(sys.argv[1]), map(int, sys.argv[2:])
    codec = KernelCodec.fit(sample_gaussian(60, 11, rng=np.random.default_rng(0)), components=6)
    network = BlindUSRNet(config, codec).train()
    task = TrainingObjective(network, TrainConfig(steps=1))

    def step(images: int, side: int) -> None:
        network.zero_grad(set_to_none=True)
        lr, hr = torch.rand(images, 3, side // scale, side // scale), torch.rand(images, 3, side, side)
        task(lr, hr, torch.full((images, 11, 11), 1 / 121), torch.zeros(images), scale)["loss"].backward()

    step(1, 48)  # the libraries' code and their own tables are loaded
    network.zero_grad(set_to_none=True)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the high-water mark starts anew
    step(batch, patch)
    print(status("VmHWM") - before)


main()
