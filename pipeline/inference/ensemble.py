"""The eight symmetries of the square (flips and quarter turns), with which a restoration should commute.

Decimation keeps the upper-left pixel of every s x s block, so turning an LR image around is not quite turning the HR
image around: LR row i is HR row s*i, and row h-1-i must be HR row s*(h-1-i) again. So an axis of the HR image is
turned about its row 0 (n -> -n modulo its length), then shifted by s*(h-1): a flip and a cyclic shift by s-1.
With the kernel flipped about its own centre, degradation then commutes exactly with each of the eight.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Turn(NamedTuple):
    """Flip rows, flip columns, then exchange the two; on the last two axes of a tensor."""

    rows: bool
    columns: bool
    transpose: bool

    def lr(self, image: Tensor) -> Tensor:
        """Turn an LR image or a kernel: (..., h, w) -> (..., h, w) or (..., w, h)."""
        axes = [axis for axis, flip in ((-2, self.rows), (-1, self.columns)) if flip]
        turned = image.flip(axes) if axes else image
        return turned.transpose(-2, -1) if self.transpose else turned

    def hr(self, image: Tensor, scale: int) -> Tensor:
        """Turn a periodic HR image (..., s*h, s*w)."""
        turned = self._flip_hr(image, scale)
        return turned.transpose(-2, -1) if self.transpose else turned

    def hr_back(self, image: Tensor, scale: int) -> Tensor:
        """Undo `hr`: a flip with its shift is its own inverse."""
        return self._flip_hr(image.transpose(-2, -1) if self.transpose else image, scale)

    def _flip_hr(self, image: Tensor, scale: int) -> Tensor:
        for axis, flip in ((-2, self.rows), (-1, self.columns)):
            if flip:
                image = image.flip(axis).roll(1 - scale, axis)
        return image


TURNS = tuple(Turn(r, c, t) for t in (False, True) for r in (False, True) for c in (False, True))
