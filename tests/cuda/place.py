"""Where a check runs, and what all checks share: networks, batches, precisions.

A check is a function `check_...(place)` of one of this folder's modules. It raises AssertionError where a law does not
hold, calls `skip` where it cannot be tried, and returns what it measured. Its code is the same on a card and on a CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from kernels_bank import KernelCodec, sample_gaussian, sample_motion
from pipeline.config import DataConfig, RunConfig, TrainConfig
from pipeline.data.batch import Batch
from pipeline.degrade import degrade
from pipeline.model_config import KernelConfig, ModelConfig, RestorerConfig
from pipeline.training.learner import Learner, build_learner

Facts = dict[str, float | int | str]
TINY = ModelConfig(
    restorer=RestorerConfig(unfoldings=3, widths=(8, 8, 16, 16), residual_blocks=1), kernel=KernelConfig(rounds=1)
)
# What the configs of full width train (a unit test compares it with jobs/configs/mixed-x2.yaml).
FULL = ModelConfig(
    restorer=RestorerConfig(unfoldings=8, widths=(64, 128, 256, 512), hyper_hidden=64),
    kernel=KernelConfig(initial="delta", schedule="rounds", rounds=4),
)


class SkippedError(Exception):
    """Say why a check cannot be tried here."""


def skip(reason: str) -> NoReturn:
    """Leave the check untried."""
    raise SkippedError(reason)


@dataclass(frozen=True)
class Place:
    """Say on what a check runs. On a card sizes are those of real work, else small."""

    device: torch.device

    @property
    def is_card(self) -> bool:
        """Tell whether the device is a CUDA card."""
        return self.device.type == "cuda"

    def pick(self, card: int, small: int) -> int:
        """Return a size: the card's, or a small one."""
        return card if self.is_card else small

    def patience(self, seconds: float) -> float:
        """Return how long to wait for another process; without a card four times as long, the machine may be busy."""
        return seconds if self.is_card else 4 * seconds

    def wait(self) -> None:
        """Wait until the device has done all its work."""
        if self.is_card:
            torch.cuda.synchronize(self.device)


def kernels(count: int, size: int = 21) -> Tensor:
    """Draw Gaussian and motion kernels alternately, (count, size, size)."""
    half = -(-count // 2)
    random = np.random.default_rng(0)
    both = np.stack([sample_gaussian(half, size, rng=random), sample_motion(half, size, rng=random)], 1)
    return torch.from_numpy(both.reshape(2 * half, size, size)[:count])


def pictures(count: int, height: int, width: int) -> Tensor:
    """Draw pictures with edges and smooth areas, (count, 3, height, width) in [0, 1]."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, -(-height // 12), -(-width // 12), generator=random)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return (3 * smooth - 1).clamp(0, 1)


def codec(size: int = 21, components: int = 12) -> KernelCodec:
    """Fit a kernel code."""
    return KernelCodec.fit(kernels(400, size).numpy(), components=components)


def batch(place: Place, count: int, patch: int, scale: int) -> Batch:
    """Make a training batch on the device."""
    hr, kernel = pictures(count, patch, patch), kernels(count)
    lr = degrade(hr, kernel, scale)
    made = Batch(lr, hr, kernel, torch.full((count,), 0.01), scale, tuple(f"sample{i}" for i in range(count)), 0)
    return made.to(place.device)


def run_config(model: ModelConfig, patch: int, **train: object) -> RunConfig:
    """Describe a run of this network."""
    data = DataConfig(shards="none", bank="none", patch=patch)
    return RunConfig(name="check", model=model, data=data, train=TrainConfig(steps=1000, **train))


def learner(
    place: Place, config: RunConfig, wrap: Callable[[torch.nn.Module], torch.nn.Module] = lambda module: module
) -> Learner:
    """Build the untrained network and all that trains it, with a tail that is not zero so that gradients flow."""
    built = build_learner(config, codec(), place.device, wrap)
    with torch.no_grad():
        tail = built.network.restorer.p.m_tail.weight
        random = torch.Generator().manual_seed(1)
        tail.add_(0.01 * torch.randn(tail.shape, generator=random).to(tail.device))
    return built


@contextlib.contextmanager
def float32(*, tf32: bool) -> Iterator[None]:
    """Compute float32 products exactly, or in TensorFloat-32 where the card has it."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def has_tf32(place: Place) -> bool:
    """Tell whether the device has TensorFloat-32."""
    return place.is_card and torch.cuda.get_device_capability(place.device)[0] >= 8


def largest(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference of two tensors, wherever they are."""
    return float((ours.detach().cpu().double() - theirs.detach().cpu().double()).abs().max())


def rms(ours: Tensor, theirs: Tensor) -> float:
    """Return the root mean square of the difference of two tensors, wherever they are."""
    return float((ours.detach().cpu().double() - theirs.detach().cpu().double()).square().mean().sqrt())


def within(what: str, value: float, limit: float) -> None:
    """Check that a difference is at most its tolerance."""
    assert value <= limit, f"{what}: {value:.3g}, the tolerance is {limit:g}"
