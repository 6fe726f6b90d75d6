"""One picture of a restoration: input | bicubic | restored, and the kernel."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from pipeline.data.pictures import kernel_picture, to_uint8
from pipeline.inference.restorer import Restored
from pipeline.model import upsample

_GAP = 6


def comparison(image: np.ndarray, restored: Restored) -> np.ndarray:
    """(H, 3W + kernel, 3) uint8: the input enlarged by repeating pixels, by bicubic, and restored; the kernel last.

    Args:
        image: (h, w, 3) uint8 input.
        restored: what was made of it.
    """
    height = restored.image.shape[0]
    planes = torch.from_numpy(image).float().permute(2, 0, 1)[None] / 255
    enlarged = [to_uint8(upsample(planes, restored.scale, mode)[0]) for mode in ("nearest", "bicubic")]
    columns = [*enlarged, restored.image]
    side = max(64, height // 4)
    inset = np.full((height, side, 3), 255, np.uint8)
    inset[:side] = cv2.resize(kernel_picture(restored.kernel), (side, side), interpolation=cv2.INTER_NEAREST)
    gap = np.full((height, _GAP, 3), 255, np.uint8)
    strip = [columns[0]]
    for picture in (*columns[1:], inset):
        strip += [gap, picture]
    return np.concatenate(strip, axis=1)
