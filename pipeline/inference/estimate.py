"""One kernel for a whole photograph, from the places that show it best."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.config import Grid
from pipeline.inference.boundary import periodic_extension
from pipeline.inference.layout import torus_margin
from pipeline.inference.network import LoadedNetwork
from pipeline.inference.texture import textured_crops

_CROP, _LEAST = 192, 96  # LR pixels a side: what an estimate is made from
_ALONE = 288  # an image no larger than this is one place
_PLACES = 3


class Estimate(NamedTuple):
    """Hold a kernel, and how it was found."""

    kernel: np.ndarray  # (k, k)
    kernel_round: int | None  # the round that made it; 0 is the initial kernel, None a given one
    spread: float | None  # mean sum of |k - k'| between it and the kernels of the other places, 0 to 2


def estimate_kernel(network: LoadedNetwork, lr: np.ndarray, scale: int, sigma: float, grid: Grid) -> Estimate:
    """Estimate the kernel of a photograph.

    Each of up to three well-textured places gives a kernel, guarded; the one that is nearest to the others is taken,
    so that a single place with a texture of its own does not decide.

    Args:
        network: the model.
        lr: (h, w, 3) float32 in [0, 1].
        scale: s.
        sigma: noise level.
        grid: where the picture restored with the kernel will lie.
    """
    alone = max(lr.shape[:2]) <= _ALONE
    side = max(lr.shape[:2]) if alone else min(_CROP, max(_LEAST, min(lr.shape[:2]) // 2))
    crops = [lr[top : top + side, left : left + side] for top, left in textured_crops(lr, side, _PLACES)]
    estimates = [_guarded(network, crop, scale, sigma, grid) for crop in crops]
    if len(estimates) == 1:
        return estimates[0]
    kernels = np.stack([estimate.kernel for estimate in estimates])
    distances = np.abs(kernels[:, None] - kernels).sum((-2, -1))
    nearest = int(distances.sum(1).argmin())
    return estimates[nearest]._replace(spread=float(distances[nearest].sum() / (len(estimates) - 1)))


def _guarded(network: LoadedNetwork, crop: np.ndarray, scale: int, sigma: float, grid: Grid) -> Estimate:
    extended = periodic_extension(crop, torus_margin(scale, network.kernel_side))
    out = network.blind(network.tensor(extended), scale, sigma, observed=network.tensor(crop), grid=grid)
    return Estimate(out.kernel[0].cpu().numpy(), int(out.kernel_round[0]), None)
