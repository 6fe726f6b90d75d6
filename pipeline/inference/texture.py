"""Find the places where an image shows its blur: much structure, and no clipping by a sensor."""

from __future__ import annotations

import numpy as np

from pipeline.images.convert import luma

_CLIPPED = (1 / 255, 254 / 255)
_STEPS = 4  # places tried along one side of a crop


def textured_crops(image: np.ndarray, side: int, count: int) -> list[tuple[int, int]]:
    """Find the upper-left corners of the best-textured crops, half a side apart or more, the best first.

    The score is the sum of the gradients' absolute values over pixels that are not clipped to black or white: where
    they are, the blur is not linear, and an edge looks sharper than it is.

    Args:
        image: (h, w, 3) float32 in [0, 1].
        side: side of the crops; they are smaller if the image is smaller.
        count: largest number of crops.
    """
    height, width = (min(side, length) for length in image.shape[:2])
    totals = _integral(structure(image))
    tops, lefts = (_places(length, part) for length, part in zip(image.shape[:2], (height, width), strict=True))
    score = (
        totals[tops[:, None] + height, lefts + width]
        - totals[tops[:, None], lefts + width]
        - totals[tops[:, None] + height, lefts]
        + totals[tops[:, None], lefts]
    )
    chosen: list[tuple[int, int]] = []
    for flat in np.argsort(-score, axis=None, kind="stable"):
        row, column = np.unravel_index(flat, score.shape)
        top, left = int(tops[row]), int(lefts[column])
        if all(2 * abs(top - t) >= height or 2 * abs(left - x) >= width for t, x in chosen):
            chosen.append((top, left))
        if len(chosen) == count:
            break
    return chosen


def structure(image: np.ndarray) -> np.ndarray:
    """Return the sum of the gradients' absolute values of every pixel (h, w); 0 for clipped pixels."""
    grey = luma(image)
    clipped = ((image <= _CLIPPED[0]) | (image >= _CLIPPED[1])).any(-1)
    rows = np.abs(np.diff(grey, axis=0, append=grey[-1:]))
    columns = np.abs(np.diff(grey, axis=1, append=grey[:, -1:]))
    return np.where(clipped, 0, rows + columns)


def _integral(values: np.ndarray) -> np.ndarray:
    """Return the sums over all upper-left rectangles: (h, w) -> (h + 1, w + 1)."""
    return np.pad(values.cumsum(0, dtype=np.float64).cumsum(1), ((1, 0), (1, 0)))


def _places(length: int, part: int) -> np.ndarray:
    return np.unique(np.append(np.arange(0, length - part + 1, max(1, part // _STEPS)), length - part))
