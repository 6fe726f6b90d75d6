"""Defocus kernels: a uniform disk, the image of a point through a round aperture."""

from __future__ import annotations

import numpy as np

from kernels_bank.runtime.errors import BadRequestError

# Sub-samples per pixel side; each is cut smoothly at the rim, so areas are exact to about 1e-3 of a pixel.
_FINE = 8


def sample_disk(
    n: int, size: int = 21, *, rng: np.random.Generator, radius: tuple[float, float] = (0.5, 8.0)
) -> np.ndarray:
    """Sample random disks; the radius in pixels is uniform over its range.

    Args:
        n: number of kernels.
        size: side in pixels, odd.
        rng: source of the draws.
        radius: range of the radius in pixels; limited to disks that fit the window.

    Raises:
        BadRequestError: the size is even, the count negative, or a range out of order.
    """
    return disk_kernels(draw_disk(n, size, rng=rng, radius=radius), size)


def draw_disk(n: int, size: int, *, rng: np.random.Generator, radius: tuple[float, float]) -> np.ndarray:
    """Draw the radii (n,) of `sample_disk`, limited to disks that fit the window.

    Args:
        n: number of kernels.
        size: side in pixels, odd.
        rng: source of the draws.
        radius: range of the radius in pixels.
    """
    if n < 0 or not 0 < radius[0] <= radius[1]:
        raise BadRequestError(f"{n} disks of radius {radius}: need n >= 0 and 0 < low <= high")
    return np.minimum(radius[0] + rng.random(n) * (radius[1] - radius[0]), size / 2)


def disk_kernels(radii: np.ndarray, size: int) -> np.ndarray:
    """Make disks centred on the middle pixel.

    Args:
        radii: (n,) in pixels.
        size: side in pixels, odd.

    Returns:
        (n, size, size) float32, sum 1: the area of each pixel that the disk covers, divided by the disk's area.
    """
    if size < 1 or size % 2 == 0:
        raise BadRequestError(f"kernel side {size}: choose an odd one, the centre needs a pixel")
    axis = (np.arange(size * _FINE) + 0.5) / _FINE - size / 2
    distance = np.sqrt(axis[:, None] * axis[:, None] + axis * axis)
    out = np.empty((len(radii), size, size), dtype=np.float32)
    for i, radius in enumerate(radii):
        # The coverage of a fine cell rises from 0 to 1 over the cell's width around the rim.
        cover = np.clip((radius - distance) * _FINE + 0.5, 0, 1).reshape(size, _FINE, size, _FINE)
        kernel = cover.sum(axis=(1, 3))
        out[i] = kernel / kernel.reshape(-1).sum()
    return out
