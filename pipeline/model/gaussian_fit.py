"""The Gaussian behind an estimated kernel: a kernel that is almost one is one.

What an estimate gets wrong of a Gaussian is less its width than its fine shape, and the restorer's inverse filter
answers to that. Half of all blurs that the model expects are Gaussians, which have three parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Sum of |k - g|: 92% of the estimates of Gaussian kernels are nearer to theirs, and 9% of motion kernels' (which are
# then as good as before). Measured in docs/training-log.md.
NEAR = 0.15
NARROWEST, WIDEST = 0.05, 400.0  # variances, squared pixels
_CORRECTIONS = 3


def snap_to_gaussian(kernel: Tensor, near: float = NEAR) -> Tensor:
    """Replace kernels (B, k, k) that lie within `near` of their Gaussian, in sum |k - g|, by it.

    Kernels are >= 0 and of sum 1.
    """
    gaussian = matching_gaussian(kernel)
    return torch.where(_distance(kernel, gaussian)[:, None, None] <= near, gaussian, kernel)


def is_nearly_gaussian(kernel: Tensor, near: float = NEAR) -> Tensor:
    """Tell (B,) which kernels (B, k, k), >= 0 and of sum 1, `snap_to_gaussian` would replace."""
    return _distance(kernel, matching_gaussian(kernel)) <= near


def matching_gaussian(kernel: Tensor) -> Tensor:
    """Return the centred Gaussian (B, k, k) with a kernel's covariance, as both are sampled and cut off."""
    with torch.autocast(kernel.device.type, enabled=False):
        return matched(kernel, _possible, torch.linalg.inv)


def matched(kernel: Tensor, possible: Callable[[Tensor], Tensor], inverse: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the same by given operations on covariances (B, 2, 2).

    Args:
        kernel: (B, k, k).
        possible: brings both variances into range.
        inverse: of a covariance.
    """
    target = _covariance(kernel)
    covariance = possible(target)
    for _ in range(_CORRECTIONS):
        # Sampling makes narrow Gaussians narrower still and the grid's edge cuts wide ones: meet what is measured.
        covariance = possible(covariance + target - _covariance(_sampled(covariance, kernel.shape[-1], inverse)))
    return _sampled(covariance, kernel.shape[-1], inverse)


def _distance(kernel: Tensor, gaussian: Tensor) -> Tensor:
    return (kernel - gaussian).abs().sum((-2, -1))


def _covariance(kernel: Tensor) -> Tensor:
    """(B, 2, 2): of rows and columns, about the mean."""
    half = kernel.shape[-1] // 2
    place = torch.arange(-half, half + 1, dtype=kernel.dtype, device=kernel.device)
    rows, columns = kernel.sum(-1), kernel.sum(-2)
    dy = place - (rows * place).sum(-1, keepdim=True)
    dx = place - (columns * place).sum(-1, keepdim=True)
    yy, xx = (rows * dy.square()).sum(-1), (columns * dx.square()).sum(-1)
    yx = torch.einsum("bij,bi,bj->b", kernel, dy, dx)
    return torch.stack((yy, yx, yx, xx), -1).reshape(-1, 2, 2)


def _possible(covariance: Tensor) -> Tensor:
    """The same with both variances in range."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(NARROWEST, WIDEST)[:, None]) @ vectors.mT


def _sampled(covariance: Tensor, size: int, inverse: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, size, size) Gaussians at the pixels, of sum 1."""
    place = torch.arange(-(size // 2), size // 2 + 1, dtype=covariance.dtype, device=covariance.device)
    points = torch.stack(torch.meshgrid(place, place, indexing="ij"), -1)  # (size, size, 2)
    distance = torch.einsum("ijp,bpq,ijq->bij", points, inverse(covariance), points)
    # The centre is the largest: the exponent never underflows everywhere.
    density = (-distance / 2).exp()
    return density / density.sum((-2, -1), keepdim=True)
