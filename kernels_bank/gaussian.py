"""Gaussian kernels: isotropic and anisotropic, integrated over each pixel.

A kernel entry is the mean of the continuous Gaussian over its pixel (times the pixel's area), as measured by a sensor.
Sigma is that of the continuous Gaussian. Point sampling, as usual in the literature, is the same with one node per
pixel: for sigma >= 1 the two differ by the pixel's own variance (1/12); below 0.5 sampling misses the kernel's shape
altogether (at 0.2 it misses the whole tail).
"""

from __future__ import annotations

from typing import get_args

import numpy as np

from kernels_bank import portable
from kernels_bank.names import SigmaLaw, check_name
from kernels_bank.runtime.errors import BadRequestError

# Gauss-Legendre nodes per pixel side, by the smaller sigma: the error stays below 1e-5 of the peak.
_NODES = ((3.6, 2), (1.4, 3), (0.8, 4), (0.4, 6), (0.0, 10))
_SMALLEST_SIGMA = 0.1
# Factors of an exponential stay below e^600, far from overflow at e^709.
_LARGEST_EXPONENT = 600.0
# Number of kernels evaluated together, so that their temporaries roughly fit the cache.
_BLOCK = 256


def sample_gaussian(
    n: int,
    size: int = 21,
    *,
    rng: np.random.Generator,
    sigma: tuple[float, float] = (0.6, 5.0),
    isotropic: float = 0.25,
    sigma_law: SigmaLaw = "sigma",
    noise: float = 0.0,
) -> np.ndarray:
    """Sample random Gaussian kernels, centred on the middle pixel.

    Args:
        n: number of kernels.
        size: side in pixels, odd.
        rng: source of the draws.
        sigma: range of the standard deviation of each axis, in pixels.
        isotropic: share of kernels with equal axes.
        sigma_law: quantity that is uniform over the range: sigma (DAN), its square (USRNet), or its logarithm, which
            gives as many kernels between 0.5 and 1 pixel, where most photographs are, as between 2 and 4.
        noise: range of multiplicative noise: each pixel is multiplied by 1 + U(0, noise) and the kernel normalised
            again (DIV2KRK: 0.25).

    Returns:
        (n, size, size) float32, >= 0, sum 1. The angle of the first axis is uniform.

    Raises:
        BadRequestError: the size is even, the count negative, a range out of order, the law unknown, or a share or the
            noise outside [0, 1].
    """
    sigmas, axis = draw_gaussian(n, rng=rng, sigma=sigma, isotropic=isotropic, sigma_law=sigma_law)
    return perturb(gaussian_kernels(sigmas, axis, size), noise, rng=rng)


def draw_gaussian(
    n: int,
    *,
    rng: np.random.Generator,
    sigma: tuple[float, float],
    isotropic: float,
    sigma_law: SigmaLaw,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the parameters of `sample_gaussian`: sigmas (n, 2) and the first axis as a unit vector (n, 2) of (x, y).

    Args:
        n: number of kernels.
        rng: source of the draws.
        sigma: range of the standard deviation of each axis, in pixels.
        isotropic: share of kernels with equal axes.
        sigma_law: quantity that is uniform over the range: sigma, its square or its logarithm.
    """
    low, high = sigma
    if n < 0 or not 0 < low <= high:
        raise BadRequestError(f"{n} Gaussians with sigma in [{low}, {high}]: need n >= 0 and 0 < low <= high")
    if not 0 <= isotropic <= 1:
        raise BadRequestError(f"isotropic {isotropic}: a share from 0 to 1 is expected")
    check_name("sigma_law", sigma_law, get_args(SigmaLaw))
    uniform = rng.random((n, 2))
    if sigma_law == "variance":
        sigmas = np.sqrt(low * low + uniform * (high * high - low * low))
    elif sigma_law == "log":
        sigmas = portable.log_uniform(uniform, low, high)
    else:
        sigmas = low + uniform * (high - low)
    equal = rng.random(n) < isotropic
    sigmas[equal, 1] = sigmas[equal, 0]
    # A pair of normal numbers has a uniform direction, without sine or cosine.
    axis = rng.standard_normal((n, 2))
    axis /= np.sqrt(axis[:, :1] * axis[:, :1] + axis[:, 1:] * axis[:, 1:])
    return sigmas, axis


def gaussian_kernels(sigmas: np.ndarray, axis: np.ndarray, size: int, *, integrate: bool = True) -> np.ndarray:
    """Make Gaussian kernels of a given shape, centred on the middle pixel.

    Args:
        sigmas: (n, 2) standard deviation along the axis and across it, in pixels.
        axis: (n, 2) unit vectors (x to the right, y down).
        size: side in pixels, odd.
        integrate: whether to average over each pixel; False samples at the pixel centres.

    Returns:
        (n, size, size) float32, >= 0, sum 1, exactly symmetric under k(x) = k(-x).
    """
    if size < 1 or size % 2 == 0:
        raise BadRequestError(f"kernel side {size}: choose an odd one, the centre needs a pixel")
    sigmas = np.maximum(np.asarray(sigmas, dtype=np.float64), _SMALLEST_SIGMA)
    axis = np.asarray(axis, dtype=np.float64)
    # exp(a x^2 + b x y + c y^2)
    along, across = 1 / (sigmas[:, 0] * sigmas[:, 0]), 1 / (sigmas[:, 1] * sigmas[:, 1])
    ux, uy = axis[:, 0], axis[:, 1]
    form = np.stack(
        [
            (ux * ux * along + uy * uy * across) * -0.5,
            ux * uy * (across - along),
            (uy * uy * along + ux * ux * across) * -0.5,
        ]
    )
    out = np.empty((len(sigmas), size, size), dtype=np.float32)
    # The last threshold that is reached decides, which is the largest.
    nodes = np.ones(len(sigmas), dtype=np.int64)
    for threshold, count in reversed(_NODES) if integrate else ():
        nodes[sigmas.min(axis=1) >= threshold] = count
    factors = np.abs(form[1]) * (size / 2) ** 2 < _LARGEST_EXPONENT
    for count in np.unique(nodes):
        for evaluate, chosen in ((_by_factors, factors), (_directly, ~factors)):
            members = np.flatnonzero((nodes == count) & chosen)
            for start in range(0, len(members), _BLOCK):
                block = members[start : start + _BLOCK]
                out[block] = _mirrored(evaluate(form[:, block], size // 2, int(count)))
    return out


def _by_factors(form: np.ndarray, half: int, nodes: int) -> np.ndarray:
    """Return the upper rows (n, half + 1, size), summed over Gauss-Legendre nodes, with one exponential per row.

    At x = i + dx the cross term is exp(b y)^i exp(b y dx): powers of one number per row, times one number per node.
    """
    a, b, c = form
    offsets, weights = _nodes(nodes)
    columns = np.arange(-half, half + 1, dtype=np.float64)[:, None]
    y = np.arange(-half, 1, dtype=np.float64)[:, None] + offsets[:, None, None]
    # Kernels are interleaved in memory: (columns, [rows,] n), with a leading axis for the nodes.
    x = columns + offsets[:, None, None]
    horizontal = portable.exp(a * x * x)[:, :, None]
    vertical = portable.exp(c * (y * y)) * weights[:, None, None]
    step = b * y
    right, left = portable.exp(step), portable.exp(-step)
    within = portable.exp(step[:, None] * offsets[:, None, None]) * weights[:, None, None]
    top = np.zeros((2 * half + 1, half + 1, len(a)))
    row, powers, term = np.empty_like(top), np.empty_like(top), np.empty_like(top)
    for dy in range(nodes):
        powers[half] = 1
        for i in range(half):
            np.multiply(powers[half + i], right[dy], out=powers[half + i + 1])
            np.multiply(powers[half - i], left[dy], out=powers[half - i - 1])
        row[:] = 0
        for dx in range(nodes):
            row += np.multiply(horizontal[dx], within[dy, dx], out=term)
        row *= powers
        row *= vertical[dy]
        top += row
    return top.transpose(2, 1, 0)


def _directly(form: np.ndarray, half: int, nodes: int) -> np.ndarray:
    """Do the same as `_by_factors` for very thin slanted Gaussians, whose single factors would overflow."""
    a, b, c = form[:, :, None]
    offsets, weights = _nodes(nodes)
    top = np.zeros((a.shape[0], half + 1, 2 * half + 1))
    for dy, wy in zip(offsets, weights, strict=True):
        y = np.arange(-half, 1) + dy
        for dx, wx in zip(offsets, weights, strict=True):
            x = np.arange(-half, half + 1) + dx
            exponent = (b * x)[:, None, :] * y[:, None]
            exponent += (c * (y * y))[:, :, None]
            exponent += (a * (x * x))[:, None, :]
            top += portable.exp(exponent) * (wx * wy)
    return top


def _nodes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Gauss-Legendre offsets and weights in a pixel, rounded because the eigenvalue solver's last bits vary."""
    offsets, weights = np.round(np.polynomial.legendre.leggauss(count), 13)
    return offsets / 2, weights


def _mirrored(top: np.ndarray) -> np.ndarray:
    """Complete kernels of sum 1 from their upper rows, exactly symmetric under k(x) = k(-x)."""
    half = top.shape[1] - 1
    whole = np.concatenate([top, top[:, :half, ::-1][:, ::-1]], axis=1)
    # The middle row is mirrored onto itself.
    whole[:, half, half + 1 :] = whole[:, half, :half][:, ::-1]
    return whole / whole.reshape(len(whole), top.shape[2] * top.shape[2]).sum(axis=1)[:, None, None]


def perturb(kernels: np.ndarray, noise: float, *, rng: np.random.Generator) -> np.ndarray:
    """Multiply each pixel by 1 + U(0, noise) and normalise again; `noise` 0 leaves kernels unchanged."""
    if not 0 <= noise <= 1:
        raise BadRequestError(f"noise {noise}: a number from 0 to 1 is expected")
    if noise == 0:
        return kernels
    noisy = kernels * (1 + noise * rng.random(kernels.shape))
    return (noisy / noisy.reshape(len(noisy), noisy.shape[1] * noisy.shape[2]).sum(axis=1)[:, None, None]).astype(
        np.float32
    )
