"""Checks of whether the model y = (x * k)down + n explains a photograph."""

from __future__ import annotations

import numpy as np

from pipeline.images.convert import to_rgb
from pipeline.inference.restorer import Restored

# Thresholds of warnings; docs/restore.md has the measurement on images inside and outside the model.
UNEXPLAINED = 2 / 255  # residual beyond the noise
APART = 0.4  # sum of |k - k'| between places
CLIPPED = 0.01  # share of pixels with a channel at its upper limit


def diagnose(image: np.ndarray, restored: Restored) -> list[str]:
    """Return one line for each sign that the image was not made by one blur and white noise.

    Args:
        image: the input, integers.
        restored: its restoration.
    """
    found = []
    excess = (max(restored.residual**2 - restored.sigma**2, 0)) ** 0.5
    if excess > UNEXPLAINED and restored.strength == 1:  # a reduced strength leaves a residual with any kernel
        found.append(
            f"the model does not explain this image: {excess * 255:.1f}/255 remain beyond the noise; "
            "its blur may not be uniform, or the kernel is wrong"
        )
    if restored.field is None and restored.spread is not None and restored.spread > APART:
        found.append(f"the blur differs from place to place (kernels are {restored.spread:.2f} apart, of at most 2)")
    if restored.trust is not None and restored.trust < 1:
        share = f"{restored.trust:.0%} of the restoration is" if restored.trust else "nothing of the restoration is"
        found.append(f"{share} believed, the rest is a plain enlargement; a trust of 1 takes all of it")
    top = to_rgb(image).max(-1)
    clipped = float((top == np.iinfo(image.dtype).max).mean())
    if clipped > CLIPPED:
        found.append(f"{clipped:.0%} of the pixels are clipped; edges beside them may ring")
    return found
