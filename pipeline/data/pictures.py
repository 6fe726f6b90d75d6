"""Conversion of tensors to viewable pictures: rows of images and kernels of one height."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from torch import Tensor

from pipeline.images.convert import grey_to_rgb


def to_uint8(image: Tensor) -> np.ndarray:
    """Convert (3, H, W) in [0, 1] to (H, W, 3) uint8, clamped and rounded."""
    return np.asarray((image.detach().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def kernel_picture(kernel: Tensor | np.ndarray) -> np.ndarray:
    """Draw a kernel (k, k) as (k, k, 3) uint8, scaled so that its largest value is white."""
    values = kernel if isinstance(kernel, np.ndarray) else kernel.detach().cpu().numpy()
    grey = np.clip(values / max(float(values.max()), 1e-12) * 255, 0, 255).round().astype(np.uint8)
    return grey_to_rgb(grey)


def rows_picture(rows: Sequence[Sequence[np.ndarray]], side: int, gap: int = 4) -> np.ndarray:
    """Draw rows of (h, w, 3) uint8 pictures, each enlarged without smoothing to `side` x `side`, on white."""
    height, width = len(rows) * (side + gap) - gap, max(len(row) for row in rows) * (side + gap) - gap
    sheet = np.full((height, width, 3), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (side + gap), j * (side + gap)
            enlarged = cv2.resize(image, (side, side), interpolation=cv2.INTER_NEAREST)
            sheet[top : top + side, left : left + side] = enlarged
    return sheet
