"""Gaussian kernels: isotropic and anisotropic, integrated over each pixel.

A kernel entry is the mean of the continuous Gaussian over its pixel (times the pixel's area), what a sensor measures;
the sigma is the continuous one's. Point sampling, the literature's habit, is the same thing with one node a pixel:
for sigma >= 1 the two differ by the pixel's own variance (1/12), below 0.5 sampling misses the kernel's shape
altogether (at 0.2 it is off by its whole tail).
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from kernels_bank import portable
from kernels_bank.runtime.errors import BadRequestError

# Gauss-Legendre nodes a pixel side, by the smaller sigma: the error stays below 1e-5 of the peak.
_NODES = ((3.0, 2), (1.4, 3), (0.8, 4), (0.4, 6), (0.0, 10))
_SMALLEST_SIGMA = 0.1
# Kernels evaluated together: their temporaries stay in the L2 cache.
_BLOCK = 64


def sample_gaussian(
    n: int,
    size: int = 21,
    *,
    rng: np.random.Generator,
    sigma: tuple[float, float] = (0.6, 5.0),
    isotropic: float = 0.25,
    sigma_law: Literal["sigma", "variance"] = "sigma",
    noise: float = 0.0,
) -> np.ndarray:
    """Random Gaussian kernels, centred on the middle pixel.

    Args:
        n: how many.
        size: side in pixels, odd.
        rng: where the draws come from.
        sigma: range of the standard deviation of each axis, in pixels.
        isotropic: share of kernels whose axes are equal.
        sigma_law: which is uniform over the range, sigma (DAN) or its square (USRNet).
        noise: each pixel is multiplied by 1 + U(0, noise) and the kernel normalised again (DIV2KRK: 0.25).

    Returns:
        (n, size, size) float32, >= 0, sum 1. The angle of the first axis is uniform.

    Raises:
        BadRequestError: an even size, a negative count, a range out of order.
    """
    sigmas, axis = draw_gaussian(n, rng=rng, sigma=sigma, isotropic=isotropic, sigma_law=sigma_law)
    return perturb(gaussian_kernels(sigmas, axis, size), noise, rng=rng)


def draw_gaussian(
    n: int,
    *,
    rng: np.random.Generator,
    sigma: tuple[float, float],
    isotropic: float,
    sigma_law: Literal["sigma", "variance"],
) -> tuple[np.ndarray, np.ndarray]:
    """The parameters of `sample_gaussian`: sigmas (n, 2) and the first axis as a unit vector (n, 2) of (x, y)."""
    low, high = sigma
    if n < 0 or not 0 < low <= high:
        raise BadRequestError(f"{n} Gaussians with sigma in [{low}, {high}]: need n >= 0 and 0 < low <= high")
    uniform = rng.random((n, 2))
    if sigma_law == "variance":
        sigmas = np.sqrt(low * low + uniform * (high * high - low * low))
    else:
        sigmas = low + uniform * (high - low)
    equal = rng.random(n) < isotropic
    sigmas[equal, 1] = sigmas[equal, 0]
    # A normal pair has a uniform direction: no sine, no cosine.
    axis = rng.standard_normal((n, 2))
    axis /= np.sqrt(axis[:, :1] * axis[:, :1] + axis[:, 1:] * axis[:, 1:])
    return sigmas, axis


def gaussian_kernels(sigmas: np.ndarray, axis: np.ndarray, size: int, *, integrate: bool = True) -> np.ndarray:
    """Gaussian kernels of given shape, centred on the middle pixel.

    Args:
        sigmas: (n, 2) standard deviation along the axis and across it, in pixels.
        axis: (n, 2) unit vectors (x to the right, y down).
        size: side in pixels, odd.
        integrate: mean over each pixel; False samples at the pixel centres.

    Returns:
        (n, size, size) float32, >= 0, sum 1, exactly symmetric under k(x) = k(-x).
    """
    if size < 1 or size % 2 == 0:
        raise BadRequestError(f"kernel side {size}: choose an odd one, the centre needs a pixel")
    sigmas = np.maximum(np.asarray(sigmas, dtype=np.float64), _SMALLEST_SIGMA)
    axis = np.asarray(axis, dtype=np.float64)
    out = np.empty((len(sigmas), size, size), dtype=np.float32)
    smallest = sigmas.min(axis=1, initial=np.inf)
    done = np.zeros(len(sigmas), dtype=bool)
    for threshold, nodes in _NODES:
        members = np.flatnonzero(~done & (smallest >= threshold))
        done[members] = True
        for start in range(0, len(members), _BLOCK):
            block = members[start : start + _BLOCK]
            out[block] = _evaluate(sigmas[block], axis[block], size, nodes if integrate else 1)
    return out


def _evaluate(sigmas: np.ndarray, axis: np.ndarray, size: int, nodes: int) -> np.ndarray:
    """Sum over `nodes` x `nodes` Gauss-Legendre points a pixel of exp(-(a x^2 + 2 b x y + c y^2) / 2), normalised."""
    along, across = 1 / (sigmas[:, 0] * sigmas[:, 0]), 1 / (sigmas[:, 1] * sigmas[:, 1])
    ux, uy = axis[:, 0], axis[:, 1]
    a = (ux * ux * along + uy * uy * across)[:, None] * -0.5
    c = (uy * uy * along + ux * ux * across)[:, None] * -0.5
    b = (ux * uy * (across - along))[:, None]
    half = size // 2
    # Rounded, because they come from an eigenvalue solver whose last bits depend on the machine.
    offsets, weights = np.round(np.polynomial.legendre.leggauss(nodes), 13)
    # The kernel is symmetric: the rows down to the middle one are enough.
    top = np.zeros((len(sigmas), half + 1, size))
    for dy, wy in zip(offsets / 2, weights, strict=True):
        y = np.arange(-half, 1) + dy
        vertical = (c * (y * y))[:, :, None]
        for dx, wx in zip(offsets / 2, weights, strict=True):
            x = np.arange(-half, half + 1) + dx
            exponent = (b * x)[:, None, :] * y[:, None]
            exponent += vertical
            exponent += (a * (x * x))[:, None, :]
            top += portable.exp(exponent) * (wx * wy)
    # The middle row pairs with itself.
    top[:, half, half + 1 :] = top[:, half, :half][:, ::-1]
    whole = np.concatenate([top, top[:, :half, ::-1][:, ::-1]], axis=1)
    return whole / whole.reshape(len(whole), -1).sum(axis=1)[:, None, None]


def perturb(kernels: np.ndarray, noise: float, *, rng: np.random.Generator) -> np.ndarray:
    """Each pixel times 1 + U(0, noise), normalised again; the kernels themselves when `noise` is 0."""
    if noise == 0:
        return kernels
    noisy = kernels * (1 + noise * rng.random(kernels.shape))
    return (noisy / noisy.reshape(len(noisy), -1).sum(axis=1)[:, None, None]).astype(np.float32)
