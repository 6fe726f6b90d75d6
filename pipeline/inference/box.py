"""A part of an image, in pixels and in the cells of a kernel field."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

CELL = 8  # side in LR pixels of a cell, for which one kernel is chosen


class Box(NamedTuple):
    """Hold the place of a part of an image, in LR pixels."""

    top: int
    left: int
    bottom: int
    right: int

    def grown(self, by: int, height: int, width: int) -> Box:
        """Return the box with a margin, within the image."""
        top, left = max(self.top - by, 0), max(self.left - by, 0)
        return Box(top, left, min(self.bottom + by, height), min(self.right + by, width))

    @property
    def size(self) -> tuple[int, int]:
        """Return (h, w)."""
        return self.bottom - self.top, self.right - self.left

    def union(self, other: Box) -> Box:
        """Return the smallest box that contains both."""
        top, left = min(self.top, other.top), min(self.left, other.left)
        return Box(top, left, max(self.bottom, other.bottom), max(self.right, other.right))

    def of(self, image: np.ndarray, scale: int = 1) -> np.ndarray:
        """Cut the box out of an image that is `scale` times as large."""
        return image[scale * self.top : scale * self.bottom, scale * self.left : scale * self.right]

    def cells(self, values: np.ndarray) -> np.ndarray:
        """Cut the box out of (rows, columns) of cells; its corner must be the corner of a cell."""
        top, left, bottom, right = self.top // CELL, self.left // CELL, -(-self.bottom // CELL), -(-self.right // CELL)
        return values[top:bottom, left:right]
