"""One picture of a restoration: input | bicubic | restored, and the kernel."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from pipeline.data.pictures import kernel_picture, to_uint8
from pipeline.images.convert import to_depth, to_rgb
from pipeline.inference.restorer import Restored
from pipeline.inference.texture import textured_crops
from pipeline.model import upsample

_GAP = 6
_SHOWN = 640  # largest side in HR pixels; of a larger image the best-textured part is shown


def comparison(image: np.ndarray, restored: Restored) -> np.ndarray:
    """Draw (H, 3W + kernel, 3) uint8: the input with repeated pixels, bicubic, restored, and the kernel.

    Args:
        image: (h, w), (h, w, 3) or (h, w, 4), uint8 or uint16: the input.
        restored: its restoration.
    """
    scale, side = restored.scale, _SHOWN // restored.scale
    ((top, left),) = textured_crops(_rgb(image).astype(np.float32) / 255, side, 1)
    lr = _rgb(image[top : top + side, left : left + side])
    sr = _rgb(restored.image[scale * top : scale * (top + side), scale * left : scale * (left + side)])
    planes = torch.from_numpy(lr).float().permute(2, 0, 1)[None] / 255
    columns = [*(to_uint8(upsample(planes, scale, mode, "centre")[0]) for mode in ("nearest", "bicubic")), sr]
    height = sr.shape[0]
    kernel_side = min(height, max(64, height // 4))
    inset = np.full((height, kernel_side, 3), 255, np.uint8)
    kernel = kernel_picture(restored.kernel)
    inset[:kernel_side] = cv2.resize(kernel, (kernel_side, kernel_side), interpolation=cv2.INTER_NEAREST)
    gap = np.full((height, _GAP, 3), 255, np.uint8)
    strip = [columns[0]]
    for picture in (*columns[1:], inset):
        strip += [gap, picture]
    return np.concatenate(strip, axis=1)


def _rgb(image: np.ndarray) -> np.ndarray:
    """Convert a grey or colour image to (h, w, 3) uint8 without alpha."""
    return to_rgb(to_depth(image, np.dtype(np.uint8)))
