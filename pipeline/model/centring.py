"""The place of a kernel: its centre of mass belongs on the middle pixel.

Kernel and image can be shifted against each other without any change of the LR image, so nothing in the LR image keeps
an estimate in its place. Off its place it loses what leaves its frame, and shifts the restored image.
"""

from __future__ import annotations

import torch
from torch import Tensor


def recentre(kernel: Tensor) -> Tensor:
    """Shift kernels so that their centre of mass is on the middle pixel, bilinearly; what leaves the frame is lost.

    Args:
        kernel: (B, k, k), k odd, >= 0, of sum 1.

    Returns:
        (B, k, k), >= 0, of sum 1. Kernels that are centred already keep their values, up to rounding.
    """
    with torch.autocast(kernel.device.type, enabled=False):
        moved = _shift(kernel.sum(-1)) @ kernel @ _shift(kernel.sum(-2)).mT
    return moved / moved.sum((-2, -1), keepdim=True)


def _shift(line: Tensor) -> Tensor:
    """Return the matrices (B, k, k) that shift lines (B, k) of sum 1 so that their mean is in the middle."""
    place = torch.arange(line.shape[-1], dtype=line.dtype, device=line.device) - line.shape[-1] // 2
    mean = (line * place).sum(-1)[:, None, None]
    return (1 - (place[:, None] + mean - place).abs()).clamp_min(0)
