"""A picture of a kernel field: the kernel of every place, drawn over the dimmed restored photograph."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from pipeline.images.convert import to_depth, to_rgb
from pipeline.inference.kernel_field import KernelField
from pipeline.inference.restorer import Restored

_LONGEST = 1280  # pixels
_ACROSS = 12  # kernels along the longer side
_DIM = 0.35
_TINT = np.array([255, 214, 120], np.float32)


def mosaic(restored: Restored) -> np.ndarray:
    """Draw (H, W, 3) uint8 of at most 1280 pixels a side: kernels on the restored photograph, each at its place.

    Args:
        restored: a restoration with a kernel field.
    """
    assert restored.field is not None
    picture = to_rgb(to_depth(restored.image, np.dtype(np.uint8)))
    shrink = min(1.0, _LONGEST / max(picture.shape[:2]))
    width, height = (max(1, round(shrink * side)) for side in (picture.shape[1], picture.shape[0]))
    canvas = _DIM * cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    pitch = max(16, round(max(height, width) / _ACROSS))
    rows, columns = restored.field.weights.shape[1:]
    for top in range(0, height - pitch + 1, pitch):
        for left in range(0, width - pitch + 1, pitch):
            row, column = (
                min(int(count * (start + pitch / 2) / length), count - 1)
                for count, start, length in ((rows, top, height), (columns, left, width))
            )
            kernel = np.clip(restored.field.at(row, column), 0, None)
            side = pitch - 4
            drawn = cv2.resize(kernel / kernel.max(), (side, side), interpolation=cv2.INTER_NEAREST)[..., None]
            place = canvas[top + 2 : top + 2 + side, left + 2 : left + 2 + side]
            place[:] = (1 - drawn) * place + drawn * _TINT
    return np.clip(canvas, 0, 255).round().astype(np.uint8)


def described(field: KernelField) -> dict[str, Any]:
    """Describe a field for the report: windows estimated, and each used kernel's share of the picture."""
    shares = field.weights.mean((1, 2), dtype=np.float64)
    return {"windows": field.windows, "shares": [round(float(share), 4) for share in shares if share > 0]}
