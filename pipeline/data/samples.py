"""One training sample: crop, flip, draw kernel and noise, degrade. A pure function of (seed, epoch, key, patch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from kernels_bank.gaussian import draw_gaussian, gaussian_kernels, perturb
from kernels_bank.runtime.errors import BadRequestError
from kernels_bank.spec import KernelBankSpec
from pipeline.camera import to_linear
from pipeline.config import DataConfig
from pipeline.data.camera_draw import CameraDraw, draw_camera, through_camera
from pipeline.degrade import degrade, quantize
from pipeline.reduction import compose, one_hot
from pipeline.seeds import rng


@dataclass(frozen=True)
class Draw:
    """Hold a crop with all its draws, before the degradation."""

    key: str
    hr: np.ndarray  # (3, p, p) uint8
    kernel: np.ndarray  # (k, k) float32
    sigma: float  # on the [0, 1] scale
    noise: np.random.Generator  # in the state for drawing the noise
    camera: CameraDraw | None = None  # None: only blur, decimation and white noise


class Degraded(NamedTuple):
    """Hold the LR images of draws of one scale, with the kernels and noise levels for the restorer."""

    lr: np.ndarray  # (n, 3, p/s, p/s) float32
    kernel: np.ndarray  # (n, k, k) float32, including the reduction if there is one
    sigma: np.ndarray  # (n,) float32


def draw(tile: np.ndarray, key: str, patch: int, *, epoch: int, seed: int, data: DataConfig, bank: np.ndarray) -> Draw:
    """Draw crop, orientation, kernel and noise level of one sample.

    Args:
        tile: (H, W, 3) uint8; a side shorter than the patch is extended by reflection.
        key: the tile's key.
        patch: index of the patch in the tile.
        epoch: epoch of the run.
        seed: seed of the run.
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
    name = f"{key}/{patch}"
    camera = draw_camera(data.camera, name, epoch=epoch, seed=seed) if data.camera else None
    return Draw(name, hr, kernel, 0.0 if clean else float(level), random, camera)


def with_fresh_kernels(draws: Sequence[Draw], law: KernelBankSpec, *, epochs: Sequence[int], seed: int) -> list[Draw]:
    """Give each draw its own Gaussian kernel, drawn from a bank's distribution instead of from its kernels.

    The parameters come from each sample's own generator. The kernels are then made together, which is thirty times as
    fast as one by one and gives the same bits whatever samples share the call.

    Args:
        draws: draws of one task.
        law: the bank's spec.
        epochs: epoch of each draw.
        seed: seed of the run.

    Raises:
        BadRequestError: the bank holds kernels other than Gaussians.
    """
    others = [family for family, count in law.counts.items() if count and family != "gaussian"]
    if others:
        raise BadRequestError(
            "data.kernel_source 'online' draws Gaussians, and the bank holds other kernels too; use 'bank', or a bank "
            f"built with {' '.join(f'--{family} 0' for family in others)}"
        )
    randoms = [rng(seed, epoch=epoch, key=d.key, purpose="kernel") for d, epoch in zip(draws, epochs, strict=True)]
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


def degrade_draws(draws: Sequence[Draw], scale: int, lr_quantize: str) -> Degraded:
    """Degrade draws of one scale; either all of them have a camera, or none.

    Args:
        draws: crops with their draws; their generators advance.
        scale: s.
        lr_quantize: quantisation of LR images without a camera.
    """
    kernels = torch.from_numpy(np.stack([d.kernel for d in draws]))
    cameras = [d.camera for d in draws if d.camera]
    if cameras:
        return _through_cameras(draws, cameras, kernels, scale)
    hr = torch.from_numpy(np.stack([d.hr for d in draws])).float().div_(255)
    side = hr.shape[-1] // scale
    noise = [d.noise.standard_normal((3, side, side), dtype=np.float32) * np.float32(d.sigma) for d in draws]
    lr = quantize(degrade(hr, kernels, scale, torch.from_numpy(np.stack(noise))), lr_quantize)
    return Degraded(lr.numpy(), kernels.numpy(), np.array([d.sigma for d in draws], np.float32))


def _through_cameras(draws: Sequence[Draw], cameras: Sequence[CameraDraw], kernels: Tensor, scale: int) -> Degraded:
    # One by one: in a convolution with many kernels the last bits depend on the batch.
    kernels = torch.cat(
        [
            compose(kernel[None], one_hot([camera.reduction]), scale, camera.grid)
            for kernel, camera in zip(kernels, cameras, strict=True)
        ]
    )
    hr = np.stack([d.hr for d in draws]).astype(np.float32) / 255
    for image, camera in zip(hr, cameras, strict=True):
        if camera.linear:
            image[:] = to_linear(image)
    clean = degrade(torch.from_numpy(hr), kernels, scale).numpy()
    stored = [through_camera(c, d.camera, d.sigma, d.noise) for c, d in zip(clean, draws, strict=True) if d.camera]
    images, told = zip(*stored, strict=True)
    return Degraded(np.stack(images), kernels.numpy(), np.array(told, np.float32))
