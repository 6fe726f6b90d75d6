"""The single definition of the degradation: y = (x (*) k) down_s + n.

`(*)` is true convolution with circular boundary, the kernel's centre is its middle pixel, and decimation keeps the
upper-left pixel of every s x s block. It equals `scipy.ndimage.convolve(x, k, mode="wrap")[::s, ::s]` and the
Fourier operator inside the network's data step (USRNet, Zhang et al., CVPR 2020, Eq. 1).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_FAINT = 1e-30  # smaller kernel weights count as zero


def degrade(hr: Tensor, kernel: Tensor, scale: int, noise: Tensor | None = None) -> Tensor:
    """Blur, decimate and add noise; only the kept pixels are computed.

    Args:
        hr: (B, C, H, W) floating point, H and W multiples of `scale`.
        kernel: (B, k, k), k odd, of the same dtype and device; one kernel per image.
        scale: the decimation s >= 1.
        noise: (B, C, H/s, W/s) already scaled to its sigma, or None.

    Returns:
        (B, C, H/s, W/s) of the dtype of `hr`. Not clipped.

    Raises:
        ValueError: shapes that do not fit each other, an even kernel, a kernel larger than the image.
    """
    if hr.ndim != 4 or kernel.ndim != 3 or kernel.shape[0] != hr.shape[0] or kernel.shape[1] != kernel.shape[2]:
        raise ValueError(
            f"degrade needs hr (B,C,H,W) and kernel (B,k,k), got {tuple(hr.shape)} and {tuple(kernel.shape)}"
        )
    height, width = hr.shape[-2:]
    size = kernel.shape[-1]
    if size % 2 == 0:
        raise ValueError(f"kernel side {size} is even; a centre pixel needs an odd side")
    if scale < 1 or height % scale or width % scale:
        raise ValueError(f"image {height} x {width} is not a multiple of scale {scale}; crop it first")
    if size > min(height, width):
        raise ValueError(f"kernel {size} x {size} is larger than the image {height} x {width}")
    # The tails of Gaussians are so small that processors take ten times as long for them, and they change no sum.
    kernel = kernel.where(kernel.abs() > _FAINT, 0)
    # Measured on one core with 96 x 96 patches and sides 11 to 31: computing only the kept pixels wins up to about
    # 150 kernel taps for each pixel of the LR grid's cell, the FFT beyond that and always where nothing is dropped. In
    # float64, which has no fast convolutions, the FFT wins by 2 to 50 times.
    direct = scale > 1 and size**2 < 150 * scale**2 and hr.dtype != torch.float64
    lr = _direct(hr, kernel, scale) if direct else _fourier(hr, kernel, scale)
    if noise is None:
        return lr
    if noise.shape != lr.shape:
        raise ValueError(f"noise {tuple(noise.shape)} does not fit the LR image {tuple(lr.shape)}")
    return lr + noise


def _direct(hr: Tensor, kernel: Tensor, scale: int) -> Tensor:
    """Convolve the wrapped image with a stride, which computes only the kept pixels."""
    batch, channels, height, width = hr.shape
    size = kernel.shape[-1]
    # conv2d correlates, so the kernel is flipped; all images of the batch are channels of one grouped convolution.
    weight = kernel.flip(-2, -1)[:, None, None].expand(-1, channels, -1, -1, -1).reshape(-1, 1, size, size)
    padded = F.pad(hr, [size // 2] * 4, mode="circular")
    padded = padded.reshape(1, batch * channels, height + size - 1, width + size - 1)
    with torch.autocast(hr.device.type, enabled=False):
        lr = F.conv2d(padded, weight, stride=scale, groups=batch * channels)
    return lr.reshape(batch, channels, height // scale, width // scale)


def _fourier(hr: Tensor, kernel: Tensor, scale: int) -> Tensor:
    """Blur the whole image by FFT, then return the kept pixels."""
    height, width = hr.shape[-2:]
    size = kernel.shape[-1]
    centred = F.pad(kernel, (0, width - size, 0, height - size)).roll((-(size // 2), -(size // 2)), (-2, -1))
    blurred = torch.fft.irfft2(torch.fft.rfft2(hr) * torch.fft.rfft2(centred)[:, None], s=(height, width))
    return blurred[..., ::scale, ::scale]


def quantize(lr: Tensor, mode: str) -> Tensor:
    """Quantise an LR image on the [0, 1] scale to 8 bit.

    `none` leaves the image as it is, `round` is what a camera does, `floor` is what the published USRNet code does by
    accident (SciPy truncates uint8 images), and its published numbers need it.

    Raises:
        ValueError: unknown mode.
    """
    match mode:
        case "none":
            return lr
        case "round":
            return (lr * 255).round().clamp(0, 255) / 255
        case "floor":
            # The float32 blur of a flat area may lie just below the exact integer.
            return (lr * 255 + 1e-4).floor().clamp(0, 255) / 255
    raise ValueError(f"unknown quantisation '{mode}'; use none, round or floor")
