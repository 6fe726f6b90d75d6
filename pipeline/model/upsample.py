"""Plain enlargements: first estimates for the unfoldings, and baselines for restored pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels_bank.names import Grid

_CUBIC = -0.75  # the free parameter of the cubic convolution kernel, as in OpenCV


def upsample(lr: Tensor, scale: int, mode: str, grid: Grid = "corner") -> Tensor:
    """Upsample (B, C, h, w) to (B, C, s*h, s*w).

    `nearest` repeats pixels, as the published USRNet does. `bicubic` interpolates by the cubic convolution kernel
    (Keys 1981, a = -0.75 as in OpenCV; edges replicated). On the `corner` grid LR pixel (i, j) is exactly at HR pixel
    (s*i, s*j), from which the decimation took it. On the `centre` grid it is (s - 1) / 2 further, in the middle of its
    block, as in all resizing functions.

    Args:
        lr: (B, C, h, w) floating point.
        scale: s.
        mode: `nearest` or `bicubic`.
        grid: position of LR pixels in their blocks.

    Raises:
        ValueError: unknown mode.
    """
    match mode:
        case "nearest":
            return F.interpolate(lr, scale_factor=scale, mode="nearest")
        case "bicubic" if grid == "centre":
            return F.interpolate(lr, scale_factor=scale, mode="bicubic", align_corners=False)
        case "bicubic":
            with torch.autocast(lr.device.type, enabled=False):  # bf16 would round the picture to steps of a grey level
                return _bicubic(lr, scale)
    raise ValueError(f"unknown first estimate '{mode}'; use nearest or bicubic")


def _bicubic(lr: Tensor, scale: int) -> Tensor:
    batch, channels, height, width = lr.shape
    taps = torch.arange(-1, 3, dtype=lr.dtype, device=lr.device)
    phases = torch.arange(scale, dtype=lr.dtype, device=lr.device) / scale
    distance = (taps - phases[:, None]).abs()  # (s, 4)
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance.square() + 1
    far = _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    line = torch.where(distance <= 1, near, far).where(distance < 2, 0)
    weight = (line[:, None, :, None] * line[None, :, None, :]).reshape(scale * scale, 1, 4, 4)
    planes = F.pad(lr.reshape(batch * channels, 1, height, width), (1, 2, 1, 2), mode="replicate")
    return F.pixel_shuffle(F.conv2d(planes, weight), scale).reshape(batch, channels, scale * height, scale * width)
