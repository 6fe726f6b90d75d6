"""Reductions, the ways to shrink a picture, written as kernels so that the exact operator stays exact.

A picture that is reduced s times with antialiasing is first smoothed by a short filter and then decimated. The filter
is one more kernel: y = (x (*) (k (*) r)) down_s. So every reduction is a separable kernel r, given by its single line,
and the preceding blur and r together are one composite kernel, which the network's data step treats like any other.
Bicubic and Lanczos have small negative lobes, and so do their composites.

The position of the small picture's pixels is part of r. On the `corner` grid of the article an LR pixel is on the
upper-left pixel of its s x s block. On the `centre` grid it is in the middle of the block, as in cameras and in every
program that enlarges pictures: (s - 1) / 2 pixels further, half a pixel at x2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import get_args

import numpy as np

from kernels_bank.names import Grid, Reduction, check_name

REDUCTIONS: tuple[Reduction, ...] = get_args(Reduction)
_CUBIC = -0.5  # Keys (1981), as in MATLAB and Pillow
_LOBES = 3  # lobes of Lanczos, as in Pillow
_REACH = 6  # pixels on either side of the windowed sinc for subpixel shifts
_BLOCK = 128  # number of kernels convolved together, so that they stay in the cache


def offset(scale: int, grid: Grid) -> float:
    """Return the offset of an LR pixel to the right of and below its block's upper-left pixel, in HR pixels.

    >>> offset(4, "centre")
    1.5
    """
    check_name("grid", grid, get_args(Grid))
    return (scale - 1) / 2 if grid == "centre" else 0.0


@functools.lru_cache(maxsize=64)
def reduction_line(reduction: Reduction, scale: int, grid: Grid) -> np.ndarray:
    """Return one line of a reduction's separable kernel.

    Args:
        reduction: `direct` keeps one pixel of each block; `area` is the block's mean, as in a camera's pixel;
            `bicubic` and `lanczos` are the antialiased filters of MATLAB and Pillow.
        scale: s >= 1.
        grid: position of LR pixels. A kept pixel is in its corner and a block's mean in the middle: on the other grid
            these two are shifted, by a windowed sinc unless the shift is whole.

    Returns:
        (n,) float64, n odd, of sum 1 and with its centroid at minus the grid's offset from the middle; read-only.

    >>> reduction_line("area", 2, "centre").tolist()
    [0.0, 0.5, 0.5, 0.0, 0.0]
    """
    check_name("reduction", reduction, REDUCTIONS)
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


def shift_line(line: np.ndarray, by: float) -> np.ndarray:
    """Shift a line of odd length by `by` pixels, with a windowed sinc unless they are whole; the sum is kept.

    The middle entry of the longer result is again position 0.
    """
    reach = int(np.ceil(abs(by))) if float(by).is_integer() else _REACH + int(np.ceil(abs(by)))
    distance = np.arange(-reach, reach + 1) - by
    taps = np.where(np.abs(distance) < _REACH, np.sinc(distance) * np.sinc(distance / _REACH), 0.0)
    return np.convolve(line, taps / taps.sum())


def reduce_kernels(kernels: np.ndarray, which: np.ndarray, lines: list[np.ndarray]) -> np.ndarray:
    """Make composite kernels: blurs followed by reductions, cut to the blurs' size, with the same bits everywhere.

    Args:
        kernels: (n, k, k) blurs, k odd, of sum 1.
        which: (n,) index into `lines`, the reduction of each kernel.
        lines: (n,) float64 each, n odd, of sum 1: the columns and rows of the reductions.

    Returns:
        (n, k, k) float32 of sum 1, with the negative lobes of its reduction.
    """
    out = np.empty(kernels.shape, np.float32)
    for i, line in enumerate(lines):
        members = np.flatnonzero(which == i)
        for start in range(0, len(members), _BLOCK):
            some = members[start : start + _BLOCK]
            # The last bits of sines differ between processors, but twelve digits of a line do not.
            block = kernels[some].astype(np.float64)
            for axis in (1, 2):
                block = _convolved(block, np.round(line, 12), axis)
            out[some] = block / block.reshape(len(some), -1).sum(axis=1)[:, None, None]
    return out


def _convolved(kernels: np.ndarray, line: np.ndarray, axis: int) -> np.ndarray:
    """Convolve with a line of odd length along an axis, with zero padding; additions are in a fixed order."""
    across = np.moveaxis(kernels, axis, -1)
    side, half = across.shape[-1], len(line) // 2
    out = np.zeros_like(across)
    for tap in np.flatnonzero(line):
        by = int(tap) - half
        out[..., max(by, 0) : side + min(by, 0)] += line[tap] * across[..., max(-by, 0) : side - max(by, 0)]
    return np.moveaxis(out, -1, axis)


def _sampled(shape: Callable[[np.ndarray], np.ndarray], support: int, scale: int, behind: float) -> np.ndarray:
    """Sample a filter of `support` LR pixels on either side at the HR pixels around an LR pixel."""
    reach = int(support * scale + behind)  # the filter is zero from this distance on
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
