"""DAN's degradation (Luo et al., NeurIPS 2020), and the equivalent kernel in our degradation.

DAN blurs by correlation over mirrored edges and then shrinks by MATLAB's antialiased bicubic, whose LR pixels are in
the middle of their s x s blocks. For integer factors that bicubic is itself a blur and a decimation, so one larger
kernel, (s - 1) / 2 pixels off the centre, describes both steps in y = (x (*) k) down_s: `equivalent_kernel`.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import signal

from kernels_bank.reduction import cubic, reduction_line

_SIZE, _COUNT = 21, 8


def gaussian8(widths: tuple[float, float]) -> np.ndarray:
    """Make Gaussian8, (8, 21, 21) float32: isotropic, standard deviations evenly from widths[0] to widths[1]."""
    line = np.arange(_SIZE) - _SIZE // 2
    squared = line[:, None] ** 2 + line**2
    kernels = np.stack([np.exp(-squared / (2 * width**2)) for width in np.linspace(*widths, _COUNT)])
    return np.asarray(kernels / kernels.sum((1, 2), keepdims=True), np.float32)


def degrade_dan(hr: np.ndarray, kernel: np.ndarray, scale: int) -> np.ndarray:
    """Degrade (H, W, 3) floating point by an odd (k, k) kernel to (H/s, W/s, 3) float64, not quantised."""
    image = torch.from_numpy(hr.astype(np.float64)).permute(2, 0, 1)[:, None]
    reach = kernel.shape[0] // 2
    weight = torch.from_numpy(kernel.astype(np.float64))[None, None]
    blurred = F.conv2d(F.pad(image, [reach] * 4, mode="reflect"), weight)[:, 0].permute(1, 2, 0).numpy()
    return resize(blurred, hr.shape[0] // scale, hr.shape[1] // scale)


def equivalent_kernel(kernel: np.ndarray, scale: int) -> np.ndarray:
    """Return the (k', k') float32 kernel, k' odd, with which circular convolution and decimation do the same.

    This holds away from the edges, where mirrored and wrapped images differ. The kernel sums to 1 and has the
    bicubic's negative lobes.
    """
    line = reduction_line("bicubic", scale, "centre")
    # Correlation with k is convolution with k rotated by 180 degrees.
    return signal.convolve2d(kernel[::-1, ::-1].astype(np.float64), np.outer(line, line)).astype(np.float32)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (H, W, 3) like MATLAB's `imresize`: bicubic, antialiased if it shrinks, edge pixels mirrored."""
    rows, columns = _resampling(image.shape[0], height), _resampling(image.shape[1], width)
    return np.einsum("ih,hwc,jw->ijc", rows, image, columns, optimize=True)


def _resampling(count: int, to: int) -> np.ndarray:
    """Return the (to, count) weights of a line's pixels in a resized line."""
    ratio = to / count
    sharpness = min(ratio, 1.0)  # a shrinking filter is wider by this ratio
    reach = int(np.ceil(2 / sharpness)) + 1
    centre = (np.arange(to) + 0.5) / ratio - 0.5
    taps = np.floor(centre).astype(int)[:, None] + np.arange(-reach, reach + 1)
    weights = cubic(sharpness * (centre[:, None] - taps))
    weights /= weights.sum(1, keepdims=True)
    mirrored = taps % (2 * count)
    mirrored = np.where(mirrored < count, mirrored, 2 * count - 1 - mirrored)
    matrix = np.zeros((to, count))
    np.add.at(matrix, (np.arange(to)[:, None], mirrored), weights)
    return matrix
