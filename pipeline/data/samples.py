"""One training sample: crop, flip, draw kernel and noise, degrade. A pure function of (seed, epoch, key, patch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from kernels_bank.gaussian import draw_gaussian, gaussian_kernels, perturb
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.spec import KernelBankSpec
from pipeline.config import DataConfig
from pipeline.degrade import degrade, quantize
from pipeline.seeds import rng


@dataclass(frozen=True)
class Draw:
    """Hold a crop with everything that was drawn for it, before the degradation."""

    key: str
    hr: np.ndarray  # (3, p, p) uint8
    kernel: np.ndarray  # (k, k) float32
    sigma: float  # on the [0, 1] scale
    noise: np.random.Generator  # in the state in which the noise is drawn


def draw(tile: np.ndarray, key: str, patch: int, *, epoch: int, seed: int, data: DataConfig, bank: np.ndarray) -> Draw:
    """Draw crop, orientation, kernel and noise level of one sample.

    Args:
        tile: (H, W, 3) uint8; a side shorter than the patch is extended by reflection.
        key: the tile's key.
        patch: which of the tile's patches.
        epoch: of the run.
        seed: of the run.
        data: patch size and noise distribution.
        bank: (N, k, k) float32 kernels, chosen from uniformly.
    """
    random = rng(seed, epoch=epoch, key=f"{key}/{patch}", purpose="sample")
    short = [max(0, data.patch - side) for side in tile.shape[:2]]
    if any(short):
        tile = np.pad(tile, ((0, short[0]), (0, short[1]), (0, 0)), mode="symmetric")
    top, left = (int(random.integers(side - data.patch + 1)) for side in tile.shape[:2])
    crop = tile[top : top + data.patch, left : left + data.patch]
    crop = np.rot90(crop, int(random.integers(4)))
    if random.integers(2):
        crop = crop[:, ::-1]
    kernel = bank[int(random.integers(len(bank)))]
    clean = random.random() < data.noise_free
    level = random.uniform(*data.sigma)
    hr = np.ascontiguousarray(crop.transpose(2, 0, 1))
    return Draw(f"{key}/{patch}", hr, kernel, 0.0 if clean else float(level), random)


def with_fresh_kernels(draws: Sequence[Draw], law: KernelBankSpec, *, epoch: int, seed: int) -> list[Draw]:
    """Give each draw a Gaussian kernel of its own, drawn from a bank's law instead of being one of its kernels.

    The parameters come from each sample's own generator and the kernels are then made together, which is thirty times
    as fast as one by one and gives the same bits in any company.

    Args:
        draws: of one task.
        law: the bank's spec.
        epoch: of the run.
        seed: of the run.

    Raises:
        BadRequestError: the bank holds other kernels than Gaussians.
    """
    if law.gaussian != law.count:
        raise BadRequestError(
            "data.kernel_source 'online' draws Gaussians, and the bank holds other kernels too; use 'bank', or a bank "
            "built with --motion 0 --disk 0 --delta 0"
        )
    randoms = [rng(seed, epoch=epoch, key=d.key, purpose="kernel") for d in draws]
    drawn = [
        draw_gaussian(1, rng=random, sigma=law.sigma, isotropic=law.isotropic, sigma_law=law.sigma_law)
        for random in randoms
    ]
    sigmas, axes = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    kernels = gaussian_kernels(sigmas, axes, law.size)
    return [
        replace(d, kernel=perturb(kernel[None], law.noise, rng=random)[0])
        for d, kernel, random in zip(draws, kernels, randoms, strict=True)
    ]


def degrade_draws(draws: Sequence[Draw], scale: int, lr_quantize: str) -> np.ndarray:
    """Degrade draws of one scale to LR images, (n, 3, p/s, p/s) float32."""
    hr = torch.from_numpy(np.stack([d.hr for d in draws])).float().div_(255)
    kernels = torch.from_numpy(np.stack([d.kernel for d in draws]))
    side = hr.shape[-1] // scale
    noise = [d.noise.standard_normal((3, side, side), dtype=np.float32) * np.float32(d.sigma) for d in draws]
    return quantize(degrade(hr, kernels, scale, torch.from_numpy(np.stack(noise))), lr_quantize).numpy()
