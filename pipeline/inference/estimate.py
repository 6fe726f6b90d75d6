"""Estimation of one kernel for a whole photograph, from the places that show it best."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from kernels_bank.names import Grid
from pipeline.inference import work
from pipeline.inference.boundary import periodic_extension
from pipeline.inference.layout import torus_margin
from pipeline.inference.network import LoadedNetwork
from pipeline.inference.progress import NOBODY, Piece
from pipeline.inference.texture import textured_crops
from pipeline.model import BlindOutput
from pipeline.model.initial import Initial

_CROP, _LEAST = 192, 96  # largest and smallest side in LR pixels of a place
_ALONE = 288  # an image no larger than this is one place
_PLACES = 3


class Blur(NamedTuple):
    """Hold the parts of an estimated kernel."""

    width: float  # variance of the blur alone, HR pixels, mean of both axes
    shares: np.ndarray  # (4,) of `REDUCTIONS`


class Estimate(NamedTuple):
    """Hold a kernel and how it was estimated."""

    kernel: np.ndarray  # (k, k)
    kernel_round: int | None  # the round that estimated it; 0: the initial kernel, None: a given kernel
    spread: float | None  # mean sum of |k - k'| between the initial kernels of its place and the others, 0 to 2
    blur: Blur | None = None  # from models that separate blur and reduction


def estimate_kernel(
    network: LoadedNetwork, lr: np.ndarray, scale: int, sigma: float, grid: Grid, piece: Piece = NOBODY
) -> Estimate:
    """Estimate the kernel of a photograph.

    Each of up to three well-textured places gives an initial kernel at little cost. The place whose kernel is nearest
    to the others is refined, so that one place with an unusual texture does not decide. If the model finds nothing to
    refine, nothing is restored.

    Args:
        network: the model.
        lr: (h, w, 3) float32 in [0, 1].
        scale: s.
        sigma: noise level.
        grid: grid of the picture restored with the kernel.
        piece: counter of the work.
    """
    alone = max(lr.shape[:2]) <= _ALONE
    side = max(lr.shape[:2]) if alone else min(_CROP, max(_LEAST, min(lr.shape[:2]) // 2))
    crops = [lr[top : top + side, left : left + side] for top, left in textured_crops(lr, side, _PLACES)]
    height, width = crops[0].shape[:2]
    piece.expect(work.estimate(network, (height, width), scale, len(crops)))
    firsts = []
    for number, crop in enumerate(crops):
        piece.at("place", number, len(crops))
        firsts.append(network.initial(crop, scale, sigma))
        piece.add(work.initial((height, width)))
    if len(crops) == 1:
        return _guarded(network, crops[0], firsts[0], scale, sigma, grid, piece)
    kernels = np.stack([first.kernel(scale, "corner")[0].cpu().numpy() for first in firsts])
    distances = np.abs(kernels[:, None] - kernels).sum((-2, -1))
    nearest = int(distances.sum(1).argmin())
    spread = float(distances[nearest].sum() / (len(crops) - 1))
    return _guarded(network, crops[nearest], firsts[nearest], scale, sigma, grid, piece)._replace(spread=spread)


def _guarded(
    network: LoadedNetwork, crop: np.ndarray, first: Initial, scale: int, sigma: float, grid: Grid, piece: Piece
) -> Estimate:
    if network.is_final(first, (crop.shape[0], crop.shape[1])):
        piece.end()
        return Estimate(first.kernel(scale, grid)[0].cpu().numpy(), 0, None, _blur(first.blur, first.shares))
    extended = periodic_extension(crop, torus_margin(scale, network.kernel_side))
    once, steps, taken = work.crop_pass(network, (crop.shape[0], crop.shape[1]), scale), network.kernel_steps, 0

    def tick(what: str) -> None:
        nonlocal taken
        piece.add(once if what == "unfolding" else work.kernel_step(network))
        taken += what == "kernel step"
        if steps and (taken == 0 or what == "kernel step"):
            piece.at("kernel step", taken, steps)

    observed = network.tensor(crop)
    out = network.blind(network.tensor(extended), scale, sigma, observed=observed, grid=grid, tick=tick, first=first)
    piece.end()
    return Estimate(out.kernel[0].cpu().numpy(), int(out.kernel_round[0]), None, blur_of(out))


def blur_of(out: BlindOutput) -> Blur | None:
    """Return the parts of the kernel of one image's blind restoration, if the model separates them."""
    return _blur(out.rounds[int(out.kernel_round[0])].blur, out.reductions)


def _blur(kernel: Tensor, shares: Tensor | None) -> Blur | None:
    if shares is None:
        return None
    blur = kernel[0].cpu().numpy().astype(np.float64)
    line = np.arange(len(blur)) - len(blur) // 2
    width = (blur * (line[:, None] ** 2 + line**2)).sum() / 2
    return Blur(float(width), shares[0].cpu().numpy())
