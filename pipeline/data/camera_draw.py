"""The camera of one training sample: drawn from the sample's own generator, and applied."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kernels_bank.names import Grid, Reduction
from pipeline.camera import JpegPass, Subsampling, from_linear, sensor_noise, through_jpeg
from pipeline.config import CameraConfig
from pipeline.degrade import quantize
from pipeline.seeds import rng

_WORSE_BY = 25  # largest amount by which an earlier JPEG's quality is below the last one's
_LOWEST = 20
_SUBSAMPLINGS: tuple[Subsampling, Subsampling] = ("4:2:0", "4:4:4")


@dataclass(frozen=True)
class CameraDraw:
    """Hold the camera settings drawn for a sample."""

    reduction: Reduction
    grid: Grid
    shot: bool
    linear: bool
    rounded: bool
    passes: tuple[JpegPass, ...]
    level_factor: float  # factor of the noise level passed to the restorer


def draw_camera(camera: CameraConfig, key: str, *, epoch: int, seed: int) -> CameraDraw:
    """Draw the camera settings of a sample: a pure function that no other draw for the sample affects.

    Args:
        camera: shares of the camera effects.
        key: tile and patch.
        epoch: epoch of the run.
        seed: seed of the run.
    """
    random = rng(seed, epoch=epoch, key=key, purpose="camera")
    # All numbers are drawn, used or not, so a changed share affects only the samples that it concerns.
    reduction, centred, shot, linear, rounded, jpeg, twice = random.random(7)
    qualities = random.random(2)
    subsampling = random.integers(2, size=2)
    shift = random.integers(8, size=2)
    error = random.standard_normal()
    low, high = camera.jpeg_quality
    quality = low + int(qualities[0] * (high - low + 1))
    last = JpegPass(quality, _SUBSAMPLINGS[subsampling[0]])
    worse = max(_LOWEST, quality - int(qualities[1] * _WORSE_BY))
    before = JpegPass(worse, _SUBSAMPLINGS[subsampling[1]], (int(shift[0]), int(shift[1])))
    passes = () if jpeg >= camera.jpeg else (before, last) if twice < camera.jpeg_twice else (last,)
    return CameraDraw(
        reduction=_chosen(camera, reduction),
        grid="centre" if centred < camera.centred else "corner",
        shot=bool(shot < camera.shot),
        linear=bool(linear < camera.linear),
        rounded=bool(rounded < camera.rounded),
        passes=passes,
        level_factor=float(np.exp(camera.level_error * error)),
    )


def through_camera(
    clean: np.ndarray, drawn: CameraDraw, sigma: float, random: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Return the stored LR image of a clean one, and its noise level.

    Args:
        clean: (3, h, w) float32 in [0, 1], in linear light if the sample is.
        drawn: camera settings.
        sigma: noise level on the [0, 1] scale.
        random: source of the noise.

    Returns:
        The image (3, h, w) float32, and the noise level for the restorer; for a JPEG, its whole RMS error.
    """
    if drawn.linear:
        clean = from_linear(clean)
    noisy = clean + sensor_noise(clean, sigma, random, shot=drawn.shot)
    if not drawn.passes:
        if drawn.rounded:
            noisy = quantize(torch.from_numpy(noisy), "round").numpy()
        return noisy, sigma * drawn.level_factor
    stored = through_jpeg(noisy, drawn.passes)
    # Measured, not the sum of noise and JPEG error: coarse quantisation removes noise.
    error = float(np.square(stored - clean.clip(0, 1)).mean())
    return stored, float(np.sqrt(error)) * drawn.level_factor


def _chosen(camera: CameraConfig, place: float) -> Reduction:
    for name, share in camera.reductions.items():
        if place < share:
            return name
        place -= share
    return name  # the sum of the shares may be a rounding error below 1
