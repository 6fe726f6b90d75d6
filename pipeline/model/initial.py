"""The kernel that a blind restoration starts from, as the spectral net estimates it from an image."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kernels_bank.names import Grid
from pipeline.model.gaussian_fit import snap_to_gaussian
from pipeline.model.reducer import Reducer
from pipeline.model.spectral import SpectralInit


class Initial(NamedTuple):
    """Hold the start of the alternation."""

    blur: Tensor  # (B, k, k), >= 0, sum 1: the kernel without the reduction
    code: Tensor  # (B, c) code of the blur; for a delta, the code of the mean kernel
    shares: Tensor | None  # (B, 4) of `REDUCTIONS`; None: direct decimation
    start: Tensor | None = None  # (B, k, k) start of the kernel steps; None: the blur

    def kernel(self, scale: int, grid: Grid) -> Tensor:
        """Return the kernel (B, k, k): the blur with the reduction at this scale, on this grid."""
        return Reducer(self.shares, scale, grid).compose(self.blur)


class Views(NamedTuple):
    """Hold the net's average answer over the eight turns and mirror images of an image."""

    blur: Tensor  # (B, k, k), a Gaussian where it is nearly one
    shares: Tensor | None  # (B, 4)
    start: Tensor | None  # (B, k, k)


def over_views(
    spectral: SpectralInit, decode: Callable[[Tensor], Tensor], lr: Tensor, scale: int, sigma: Tensor
) -> Views:
    """Average the net's answers for the eight turns and mirror images of an image, each turned back.

    So the kernel of a turned image is exactly the turned kernel.

    Args:
        spectral: the net.
        decode: function from codes (B, c) to kernels (B, k, k).
        lr: (B, 3, h, w) in [0, 1].
        scale: s.
        sigma: (B,) noise levels.
    """
    blurs: list[Tensor] = []
    shares: list[Tensor] = []
    starts: list[Tensor] = []
    for quarters, mirrored in itertools.product(range(4), (False, True)):
        view = lr.rot90(quarters, (-2, -1))
        answer = spectral(view.flip(-1) if mirrored else view, scale, sigma)
        for code, kernels in ((answer.code, blurs), (answer.start, starts)):
            if code is not None:
                kernel = decode(code)
                kernels.append((kernel.flip(-1) if mirrored else kernel).rot90(-quarters, (-2, -1)))
        if answer.shares is not None:
            shares.append(answer.shares)
    share, start = (torch.stack(parts).mean(0) if parts else None for parts in (shares, starts))
    return Views(snap_to_gaussian(torch.stack(blurs).mean(0)), share, start)
