"""Upsampling without a model: the baselines of every comparison."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from pipeline.evaluation.dan_degradation import resize
from pipeline.model import upsample


def bicubic(lr: np.ndarray, scale: int) -> np.ndarray:
    """Upsample bicubically, aligned to the decimation phase.

    Decimation keeps the upper-left pixel of every s x s block, so LR pixel i is at HR pixel s*i and is kept. The s-1
    pixels between two LR pixels are interpolated (cubic convolution, Keys 1981; edges replicated).

    Args:
        lr: (h, w, 3), uint8 or floating point.
        scale: s >= 1.

    Returns:
        (s*h, s*w, 3) float32 on the scale of `lr`, not clipped.
    """
    planes = torch.from_numpy(lr.astype(np.float32)).permute(2, 0, 1)[None]
    return np.asarray(upsample(planes, scale, "bicubic")[0].permute(1, 2, 0).numpy())


def bicubic_unaligned(lr: np.ndarray, scale: int) -> np.ndarray:
    """Upsample by plain `cv2.resize`, whose grid is centred on blocks: (s-1)/2 pixels off after decimation.

    It has its own name because published tables use it.

    Args:
        lr: (h, w, 3), uint8 or floating point.
        scale: s >= 1.

    Returns:
        (s*h, s*w, 3) float32 on the scale of `lr`, not clipped.
    """
    height, width = lr.shape[:2]
    size = (scale * width, scale * height)
    return np.asarray(cv2.resize(lr.astype(np.float32), size, interpolation=cv2.INTER_CUBIC))


def bicubic_centred(lr: np.ndarray, scale: int) -> np.ndarray:
    """Upsample by MATLAB's bicubic, with LR pixels in the middle of their blocks, as after bicubic shrinking.

    Args:
        lr: (h, w, 3), uint8 or floating point.
        scale: s >= 1.

    Returns:
        (s*h, s*w, 3) float32 on the scale of `lr`, not clipped.
    """
    return resize(lr, scale * lr.shape[0], scale * lr.shape[1]).astype(np.float32)
