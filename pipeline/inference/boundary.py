"""Periodic extension: real images are not periodic but the network's operator is, so extend first and crop after."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.fft import next_fast_len

_MULTIPLE = 8  # from the prior's three 2x2 strides; in LR pixels it is enough at every scale


def periodic_extension(lr: np.ndarray, margin: int) -> np.ndarray:
    """Extend an LR image at the bottom and the right so that it wraps around without a seam.

    The added band fades from the mirrored end to the mirrored beginning of each row and column (a raised cosine), so
    both joins are continuous. Without it, the jump between opposite edges rings through the whole image; the idea is
    Liu and Jia's (ICIP 2008), whose band is Laplacian-smooth instead.

    Args:
        lr: (h, w, 3) floating point.
        margin: smallest number of pixels to add, about the kernel's side on the LR grid.

    Returns:
        (h', w', 3) float32 with `lr` as its upper-left part; h' and w' are FFT-friendly multiples of 8.
    """
    sides = [friendly_length(side + margin) for side in lr.shape[:2]]
    return extend_to(lr, sides[0], sides[1])


def extend_to(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Extend (h, w, 3) in the same way to (height, width, 3) float32; a side of that length is unchanged."""
    tall = _extend_rows(image.astype(np.float32, copy=False), height)
    return _extend_rows(tall.swapaxes(0, 1), width).swapaxes(0, 1)


def friendly_length(least: int) -> int:
    """Return the next length >= `least` that is a multiple of 8 and whose FFT is fast.

    Factors 7 and 11 are as fast as 2, 3 and 5 here. Most of the time goes into convolutions, so fewer pixels are
    faster.

    >>> friendly_length(97)
    112
    """
    return next_fast_len(-(-least // _MULTIPLE)) * _MULTIPLE


def _extend_rows(image: np.ndarray, height: int) -> np.ndarray:
    gap = height - image.shape[0]
    if gap == 0:
        return image
    mode: Literal["reflect", "edge"] = "reflect" if image.shape[0] > 1 else "edge"
    after = np.pad(image, ((0, gap), (0, 0), (0, 0)), mode=mode)[-gap:]
    before = np.pad(image, ((gap, 0), (0, 0), (0, 0)), mode=mode)[:gap]
    place = (np.arange(gap) + 1) / (gap + 1)
    weight = (0.5 - 0.5 * np.cos(np.pi * place)).astype(np.float32)[:, None, None]
    return np.concatenate([image, (1 - weight) * after + weight * before])
