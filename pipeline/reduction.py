"""Reductions: how a large picture becomes a small one, written as a kernel so that the exact operator stays exact.

A picture that is made s times as small with antialiasing is first smoothed by a short filter and then decimated. The
filter is one more kernel: y = (x (*) (k (*) r)) down_s. So every reduction is a separable kernel r, given by its one
line, and the blur in front of it and r together are one composite kernel, which the network's data step takes as it
takes any other. Bicubic and Lanczos have small negative lobes, and so have their composites.

Where the small picture's pixels lie is part of r. On the `corner` grid of the article an LR pixel lies on the
upper-left pixel of its s x s block. On the `centre` grid it lies in the middle of the block, where cameras and every
program that enlarges a picture have it: (s - 1) / 2 pixels further, half a pixel at x2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import get_args

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from kernels_bank.centring import centroid
from pipeline.config import Grid, Reduction

REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
_CUBIC = -0.5  # Keys (1981), as in MATLAB and Pillow
_LOBES = 3  # of Lanczos, as in Pillow
_REACH = 6  # pixels either side of the windowed sinc that shifts by a part of a pixel
_NO_SHIFT = 0.02  # pixels
_LOSS = 1e-3  # share of a shifted kernel that may be cut off


def offset(scale: int, grid: Grid) -> float:
    """Return how far right of and below its block's upper-left pixel an LR pixel lies, in HR pixels.

    >>> offset(4, "centre")
    1.5
    """
    return (scale - 1) / 2 if grid == "centre" else 0.0


@functools.lru_cache(maxsize=64)
def reduction_line(reduction: Reduction, scale: int, grid: Grid) -> np.ndarray:
    """Return one line of a reduction's separable kernel.

    Args:
        reduction: `direct` keeps one pixel of each block; `area` is the block's mean, as a camera's pixel takes it;
            `bicubic` and `lanczos` are the antialiased filters of MATLAB and Pillow.
        scale: s >= 1.
        grid: where an LR pixel lies. A kept pixel lies in its corner and a block's mean in the middle: on the other
            grid these two are shifted, by a windowed sinc where that is not by whole pixels.

    Returns:
        (n,) float64, n odd, of sum 1 and with its centroid at minus the grid's offset from the middle; read-only.

    >>> reduction_line("area", 2, "centre").tolist()
    [0.0, 0.5, 0.5, 0.0, 0.0]
    """
    behind = offset(scale, grid)
    middle = offset(scale, "centre")
    match reduction:
        case "direct":
            line = shift_line(np.ones(1), -behind)
        case "area":
            line = shift_line(_sampled(_box, 1, scale, middle), middle - behind)
        case "bicubic":
            line = _sampled(cubic, 2, scale, behind)
        case "lanczos":
            line = _sampled(_lanczos, _LOBES, scale, behind)
    line.flags.writeable = False
    return line


@functools.lru_cache(maxsize=16)
def reduction_kernels(scale: int, grid: Grid) -> Tensor:
    """Return the kernels of all `REDUCTIONS`, (4, m, m) float32, m odd."""
    lines = [reduction_line(name, scale, grid) for name in REDUCTIONS]
    side = max(len(line) for line in lines)
    padded = [np.pad(line, (side - len(line)) // 2) for line in lines]
    return torch.from_numpy(np.stack([np.outer(line, line) for line in padded]).astype(np.float32))


def compose(kernel: Tensor, shares: Tensor, scale: int, grid: Grid) -> Tensor:
    """Return composite kernels: blurs followed by reductions, cut to the blurs' size.

    Args:
        kernel: (B, k, k) blurs, k odd, of sum 1.
        shares: (B, 4) of each of `REDUCTIONS`, of sum 1: one of them, or a mixture where it is not sure which.
        scale: s.
        grid: where the LR pixels lie.

    Returns:
        (B, k, k) of the dtype of `kernel`, of sum 1, with the negative lobes of its reduction.
    """
    filters = mixed_reductions(shares.to(kernel), scale, grid)
    # conv2d correlates, so the filters are turned; every kernel of the batch is a channel with a filter of its own.
    whole = F.conv2d(kernel[None], filters.flip(-2, -1)[:, None], padding=filters.shape[-1] // 2, groups=len(kernel))[0]
    return whole / whole.sum((-2, -1), keepdim=True)


def mixed_reductions(shares: Tensor, scale: int, grid: Grid) -> Tensor:
    """Return each sample's reduction as one kernel, (B, m, m) of the dtype of `shares` (B, 4)."""
    return torch.einsum("br,rij->bij", shares, reduction_kernels(scale, grid).to(shares))


def one_hot(reductions: list[Reduction]) -> Tensor:
    """Return the shares (B, 4) of samples with one reduction each."""
    return F.one_hot(torch.tensor([REDUCTIONS.index(name) for name in reductions]), len(REDUCTIONS)).float()


def place(kernel: np.ndarray, scale: int, grid: Grid) -> np.ndarray:
    """Shift a kernel so that the picture restored with it lies on a grid.

    A kernel may be moved freely if the restored picture moves the other way. On the `centre` grid that picture lies
    where a bicubic enlargement of the LR image lies.

    Args:
        kernel: (k, k), k odd, of sum 1.
        scale: s.
        grid: `corner` leaves the kernel as it is; `centre` moves its centroid to minus the grid's offset.

    Returns:
        (k', k') float32, of sum 1, k' = k unless that would cut off more than a thousandth of it; the kernel itself
        where it lies there already.
    """
    if grid == "corner":
        return kernel
    shifts = (-offset(scale, grid) - centroid(kernel[None])[0]).tolist()
    if max(map(abs, shifts)) < _NO_SHIFT:
        return kernel
    room = int(np.ceil(max(map(abs, shifts)))) + 1
    out = np.pad(kernel.astype(np.float64), room)
    for axis, shift in enumerate(shifts):
        taps = shift_line(np.ones(1), shift)
        out = ndimage.convolve1d(out, taps, axis=axis, mode="constant")
    inner = out[room:-room, room:-room]
    if np.abs(inner).sum() >= (1 - _LOSS) * np.abs(out).sum():
        out = inner
    return np.asarray(out / out.sum(), np.float32)


def shift_line(line: np.ndarray, by: float) -> np.ndarray:
    """Shift a line of odd length by `by` pixels, with a windowed sinc unless they are whole; the sum stays.

    The middle entry of the longer result is again the place 0.
    """
    reach = int(np.ceil(abs(by))) if float(by).is_integer() else _REACH + int(np.ceil(abs(by)))
    distance = np.arange(-reach, reach + 1) - by
    taps = np.where(np.abs(distance) < _REACH, np.sinc(distance) * np.sinc(distance / _REACH), 0.0)
    return np.convolve(line, taps / taps.sum())


def _sampled(shape: Callable[[np.ndarray], np.ndarray], support: int, scale: int, behind: float) -> np.ndarray:
    """The filter of `support` LR pixels either side, at the HR pixels around an LR pixel."""
    reach = int(support * scale + behind)  # at that distance the filter is zero, or beyond it
    line = shape((np.arange(-reach, reach + 1) + behind) / scale)
    return np.asarray(line / line.sum())


def _box(t: np.ndarray) -> np.ndarray:
    distance = np.abs(t)
    return np.where(distance < 0.5, 1.0, np.where(distance == 0.5, 0.5, 0.0))


def cubic(t: np.ndarray) -> np.ndarray:
    """Return the cubic convolution filter (Keys, 1981, a = -0.5) at distances in pixels of the coarser grid."""
    d = np.abs(t)
    near = ((_CUBIC + 2) * d - (_CUBIC + 3)) * d**2 + 1
    far = _CUBIC * (((d - 5) * d + 8) * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _lanczos(t: np.ndarray) -> np.ndarray:
    return np.where(np.abs(t) < _LOBES, np.sinc(t) * np.sinc(t / _LOBES), 0.0)
