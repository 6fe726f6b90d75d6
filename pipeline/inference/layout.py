"""The layout of an image in windows whose results together equal that of the whole image.

The image is extended to a torus once (`boundary.py`), and every window is a cyclic cut of that torus, so the windows
at the image's edges see the same extension as the whole image. A window contains its own part of the result, half a
seam on each side where it fades into its neighbour, and around that the context on which the result depends. A window
is not periodic, so its outer edges are closed by its own band.

The context has two parts: the data step is an inverse filter, whose reach depends on the kernel and on alpha, and the
prior reaches further by a fixed number of HR pixels. Both were measured (docs/restore.md).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.inference.boundary import extend_to, friendly_length
from pipeline.model.fourier import BlurOperator, spectrum

ALIGNED = 8  # windows start at multiples of it, so that the prior's strided convolutions see the same pixels in each
_SEAM = 16  # LR pixels over which neighbours fade into each other
_BAND = 16  # smallest closing band of a window, LR pixels
_PRIOR_HR = 64  # HR pixels that a result depends on beyond the inverse filter
_INFLUENCE = 1.0  # of a pixel, summed over all pixels further away; 1e-3 of it is left beyond the prior's reach
_GRID, _LONGEST = 256, 128  # LR pixels: grid for the inverse filter, and the longest reach assumed


@dataclass(frozen=True)
class Span:
    """Hold the place of a window along one axis, in LR pixels from the image's first."""

    start: int  # first pixel of the window, a multiple of 8; negative in the band before the image
    length: int  # length of the cut of the torus
    padded: int  # length of the window with its own closing band
    first: int  # the window contributes to results first <= i < last, including seams
    last: int
    fade_in: int  # width of the seam at `first` in pixels, 0 at the image's edge
    fade_out: int

    def enlarged(self, scale: int) -> Span:
        """Return the same span of the HR image."""
        start, length, padded, first, last = (
            scale * value for value in (self.start, self.length, self.padded, self.first, self.last)
        )
        return Span(start, length, padded, first, last, 0, 0)

    def weight(self, scale: int) -> np.ndarray:
        """Return (scale * (last - first),) float32: 1, with linear ramps over the seams.

        Overlapping windows add up to 1.
        """
        weight = np.ones(scale * (self.last - self.first), np.float32)
        for length, part in ((scale * self.fade_in, weight), (scale * self.fade_out, weight[::-1])):
            part[:length] = (np.arange(length) + 0.5) / max(length, 1)
        return weight


@dataclass(frozen=True)
class Layout:
    """Hold the windows of an image: every pair of a row span and a column span."""

    rows: tuple[Span, ...]
    columns: tuple[Span, ...]

    @property
    def count(self) -> int:
        """Count the windows."""
        return len(self.rows) * len(self.columns)

    @property
    def largest(self) -> int:
        """Return the LR pixels of the largest window."""
        return max(s.padded for s in self.rows) * max(s.padded for s in self.columns)

    @property
    def cost(self) -> int:
        """Sum the LR pixels of all windows."""
        return sum(s.padded for s in self.rows) * sum(s.padded for s in self.columns)


def torus_margin(scale: int, kernel_side: int) -> int:
    """Return the LR pixels of a torus beyond its image: the kernel must fit, and the prior must not see the cut."""
    return max(-(-kernel_side // scale) + 8, 2 * -(-_PRIOR_HR * 3 // (4 * scale * ALIGNED)) * ALIGNED)


def context(kernel: np.ndarray, alpha: float, scale: int) -> int:
    """Return the context of a window in LR pixels, a multiple of 8: pixels beyond it change the result by under 1e-3.

    Args:
        kernel: (k, k), sum 1.
        alpha: smallest of the network's data weights at the noise level.
        scale: s.
    """
    reach = inverse_reach(kernel, alpha, scale) + -(-_PRIOR_HR // scale)
    return -(-reach // ALIGNED) * ALIGNED


def inverse_reach(kernel: np.ndarray, alpha: float, scale: int) -> int:
    """Return the LR pixels beyond which one pixel's influence on the data step, over all HR pixels, is below 1."""
    y = torch.zeros(1, 1, _GRID, _GRID, dtype=torch.float64)
    y[..., _GRID // 2, _GRID // 2] = 1
    operator = BlurOperator.of(torch.from_numpy(np.asarray(kernel, np.float64))[None], scale, y)
    zero = torch.zeros(1, 1, scale * _GRID, scale * _GRID, dtype=torch.float64)
    response = operator.step(zero, spectrum(y), torch.full((1, 1, 1, 1), alpha, dtype=torch.float64))[0, 0].abs()
    by_pixel = response.reshape(_GRID, scale, _GRID, scale).amax((1, 3))
    offset = (torch.arange(_GRID) - _GRID // 2).abs()
    ring = torch.maximum(offset[:, None], offset[None])
    sums = torch.zeros(_GRID // 2 + 1, dtype=torch.float64).index_add_(0, ring.flatten(), by_pixel.flatten())
    beyond = sums.flip(0).cumsum(0).flip(0)
    return min(int((beyond > _INFLUENCE).sum()), _LONGEST)


def whole(height: int, width: int, around: int) -> Layout:
    """Make a single window: the whole torus, at least `around` LR pixels longer than the image, cut in mid-band."""
    return Layout((_torus_span(height, around),), (_torus_span(width, around),))


def layout(height: int, width: int, around: int, reach: int, most: float) -> Layout | None:
    """Find the cheapest layout with windows of at most `most` LR pixels; None if no layout is that small.

    Args:
        height: height of the image, LR pixels.
        width: width of the image, LR pixels.
        around: margin of the torus, LR pixels.
        reach: context of a window, a multiple of 8.
        most: largest window in LR pixels, including seams, context and band.
    """
    found = whole(height, width, around)
    if found.largest <= most:
        return found
    axes = [[_split(length, n, around, reach) for n in range(1, -(-length // _SEAM) + 1)] for length in (height, width)]
    fitting = []
    for rows in axes[0]:
        tallest = max(span.padded for span in rows)
        # For each cut of one axis, only the coarsest fitting cut of the other is useful.
        columns = next((c for c in axes[1] if tallest * max(span.padded for span in c) <= most), None)
        if columns is not None:
            fitting.append(Layout(rows, columns))
    return min(fitting, key=lambda choice: choice.cost, default=None)


def cut(torus: np.ndarray, row: Span, column: Span) -> np.ndarray:
    """Cut a window (row.padded, column.padded, C) out of a torus (H, W, C); a part of the torus is closed by a band."""
    rows, columns = (
        np.arange(span.start, span.start + span.length) % length
        for span, length in zip((row, column), torus.shape[:2], strict=True)
    )
    return extend_to(torus[rows[:, None], columns], row.padded, column.padded)


def known(row: Span, column: Span, image: Sequence[int], torus: Sequence[int]) -> np.ndarray:
    """Return which pixels of a window are in the image and not in a band, (row.padded, column.padded) bool.

    A window without a part of the torus' band counts as known everywhere, since its closing band is too far away to
    affect its result.

    Args:
        row: rows of the window.
        column: columns of the window.
        image: (h, w) of the image.
        torus: (H, W) of the torus.
    """
    axes = []
    for span, seen, length in zip((row, column), image, torus, strict=True):
        axes.append((span.start + np.arange(span.length)) % length < seen)
    if axes[0].all() and axes[1].all():
        return np.ones((row.padded, column.padded), bool)
    rows, columns = (
        np.pad(axis, (0, span.padded - span.length)) for axis, span in zip(axes, (row, column), strict=True)
    )
    return rows[:, None] & columns


def inner(window: Tensor, row: Span, column: Span, scale: int) -> Tensor:
    """Return the part of a window that contributes to the result.

    Args:
        window: (..., s * row.padded, s * column.padded).
        row: rows of the window.
        column: columns of the window.
        scale: s.
    """
    parts = [slice(scale * (s.first - s.start), scale * (s.last - s.start)) for s in (row, column)]
    return window[..., parts[0], parts[1]]


def torus_length(length: int, around: int) -> int:
    """Return the length of one axis of the torus in LR pixels: a multiple of 8 whose FFT is fast."""
    return friendly_length(length + around)


def _torus_span(length: int, around: int) -> Span:
    torus = torus_length(length, around)
    before = (torus - length) // 2 // ALIGNED * ALIGNED
    return Span(-before, torus, torus, 0, length, 0, 0)


def _split(length: int, parts: int, around: int, reach: int) -> tuple[Span, ...]:
    """Split an axis in `parts` nearly equal spans; return the whole torus if a window would be as long."""
    torus = _torus_span(length, around)
    step = math.ceil(length / parts / ALIGNED) * ALIGNED
    edges = [*range(0, length, step), length]
    if edges[-1] - edges[-2] < _SEAM and len(edges) > 2:
        del edges[-2]  # too short to have a seam
    spans = []
    for first, last in itertools.pairwise(edges):
        fade_in, fade_out = (_SEAM if first > 0 else 0), (_SEAM if last < length else 0)
        first, last = first - fade_in // 2, last + fade_out // 2
        start, end = first - reach, last + reach
        if fade_in == 0 and fade_out == 0:
            return (torus,)
        start = start // ALIGNED * ALIGNED
        padded = friendly_length(end - start + _BAND)
        if padded >= torus.padded:
            return (torus,)
        spans.append(Span(start, end - start, padded, first, last, fade_in, fade_out))
    return tuple(spans)
