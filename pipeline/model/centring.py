"""The place of a kernel: its centre of mass belongs on the middle pixel.

Kernel and image can be shifted against each other without any change of the LR image, so nothing in the LR image keeps
an estimate in its place. Off its place it shifts the restored image.
"""

from __future__ import annotations

import torch
from torch import Tensor


def recentre(kernel: Tensor) -> Tensor:
    """Shift kernels by whole pixels so that their centre of mass is on the middle pixel; what leaves the frame is lost.

    A fraction of a pixel would blur them.

    Args:
        kernel: (B, k, k), k odd, >= 0, of sum 1.

    Returns:
        (B, k, k), >= 0, of sum 1, within half a pixel of the middle.
    """
    with torch.autocast(kernel.device.type, enabled=False):
        moved = _shift(kernel.sum(-1)) @ kernel @ _shift(kernel.sum(-2)).mT
    return moved / moved.sum((-2, -1), keepdim=True)


def _shift(line: Tensor) -> Tensor:
    """Return the matrices (B, k, k) that shift lines (B, k) of sum 1 so that their mean is in the middle."""
    place = torch.arange(line.shape[-1], device=line.device) - line.shape[-1] // 2
    mean = (line * place).sum(-1).round()[:, None, None]
    return (place[:, None] + mean == place).to(line.dtype)
