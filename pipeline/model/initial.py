"""The kernel that a blind restoration starts from, as the spectral net reads it off an image."""

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
    """Hold what the alternation starts from."""

    blur: Tensor  # (B, k, k), >= 0, sum 1: the kernel but for the reduction
    code: Tensor  # (B, c) of the blur; beside a delta the mean's
    shares: Tensor | None  # (B, 4) of `REDUCTIONS`; None: direct decimation
    start: Tensor | None = None  # (B, k, k), where the kernel steps start; None: from the blur

    def kernel(self, scale: int, grid: Grid) -> Tensor:
        """Return the kernel (B, k, k): the blur with the reduction at this scale, on this grid."""
        return Reducer(self.shares, scale, grid).compose(self.blur)


class Views(NamedTuple):
    """Hold what the net sees on the average over an image's eight turns and mirror images."""

    blur: Tensor  # (B, k, k), a Gaussian where it is nearly one
    shares: Tensor | None  # (B, 4)
    start: Tensor | None  # (B, k, k)


def over_views(
    spectral: SpectralInit, decode: Callable[[Tensor], Tensor], lr: Tensor, scale: int, sigma: Tensor
) -> Views:
    """Average what the net answers for each of the eight turns and mirror images, each turned back.

    So a turned image has the turned kernel exactly.

    Args:
        spectral: the net.
        decode: of codes (B, c) to kernels (B, k, k).
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
