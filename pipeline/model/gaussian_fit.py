"""The Gaussian behind an estimated kernel: a kernel that is almost a Gaussian is taken for one.

The estimate of a Gaussian kernel errs less in its width than in its fine shape, to which the restorer's inverse filter
is sensitive. Half of all blurs that the model expects are Gaussians, which have three parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Sum of |k - g|. 92% of the estimates of Gaussian kernels are nearer to their Gaussian, and 9% of those of motion
# kernels, which are as good after the replacement as before. Measured in docs/training-log.md.
NEAR = 0.15
NARROWEST, WIDEST = 0.05, 400.0  # variances, squared pixels
_CORRECTIONS = 3


def snap_to_gaussian(kernel: Tensor, near: float = NEAR) -> Tensor:
    """Replace kernels (B, k, k) within `near` of their Gaussian, in sum |k - g|, by that Gaussian.

    Kernels are >= 0 and of sum 1.
    """
    gaussian = matching_gaussian(kernel)
    return torch.where(_distance(kernel, gaussian)[:, None, None] <= near, gaussian, kernel)


def is_nearly_gaussian(kernel: Tensor, near: float = NEAR) -> Tensor:
    """Return (B,) bool: whether `snap_to_gaussian` would replace each kernel (B, k, k), >= 0 and of sum 1."""
    return _distance(kernel, matching_gaussian(kernel)) <= near


def matching_gaussian(kernel: Tensor) -> Tensor:
    """Return the centred Gaussian (B, k, k) with each kernel's covariance, measured on sampled, cut-off kernels."""
    with torch.autocast(kernel.device.type, enabled=False):
        return matched(kernel, _possible, torch.linalg.inv)


def matched(kernel: Tensor, possible: Callable[[Tensor], Tensor], inverse: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `matching_gaussian` computed with the given operations on covariances (B, 2, 2).

    Args:
        kernel: (B, k, k).
        possible: function that brings both variances into range.
        inverse: function that inverts a covariance.
    """
    target = _covariance(kernel)
    covariance = possible(target)
    for _ in range(_CORRECTIONS):
        # Sampling narrows narrow Gaussians further, and the grid's edge cuts wide ones: match the measured covariance.
        covariance = possible(covariance + target - _covariance(_sampled(covariance, kernel.shape[-1], inverse)))
    return _sampled(covariance, kernel.shape[-1], inverse)


def _distance(kernel: Tensor, gaussian: Tensor) -> Tensor:
    return (kernel - gaussian).abs().sum((-2, -1))


def _covariance(kernel: Tensor) -> Tensor:
    """Return the covariance (B, 2, 2) of rows and columns about the mean."""
    half = kernel.shape[-1] // 2
    place = torch.arange(-half, half + 1, dtype=kernel.dtype, device=kernel.device)
    rows, columns = kernel.sum(-1), kernel.sum(-2)
    dy = place - (rows * place).sum(-1, keepdim=True)
    dx = place - (columns * place).sum(-1, keepdim=True)
    yy, xx = (rows * dy.square()).sum(-1), (columns * dx.square()).sum(-1)
    yx = torch.einsum("bij,bi,bj->b", kernel, dy, dx)
    return torch.stack((yy, yx, yx, xx), -1).reshape(-1, 2, 2)


def _possible(covariance: Tensor) -> Tensor:
    """Bring both variances of a covariance into range."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(NARROWEST, WIDEST)[:, None]) @ vectors.mT


def _sampled(covariance: Tensor, size: int, inverse: Callable[[Tensor], Tensor]) -> Tensor:
    """Sample Gaussians at the pixels: (B, size, size), of sum 1."""
    place = torch.arange(-(size // 2), size // 2 + 1, dtype=covariance.dtype, device=covariance.device)
    points = torch.stack(torch.meshgrid(place, place, indexing="ij"), -1)  # (size, size, 2)
    distance = torch.einsum("ijp,bpq,ijq->bij", points, inverse(covariance), points)
    # The centre has the largest value, so the exponential never underflows everywhere.
    density = (-distance / 2).exp()
    return density / density.sum((-2, -1), keepdim=True)
