"""The data step of USRNet in its residual form, on one-sided (real) FFTs.

USRNet's Eq. 5 asks for the minimiser of |y - (x * k) down_s|^2 + alpha |x - x_prev|^2. With A = S B (circular blur
B, keep-the-upper-left decimation S) the Woodbury identity turns its normal equations into

    x = x_prev + B^H S^T (D + alpha)^-1 (y - S B x_prev),        D = S B B^H S^T,

where D is diagonal in the LR image's Fourier basis: the mean of |F(k)|^2 over the s x s aliases of each LR
frequency. Nothing is divided by alpha alone, so float32 holds at alpha = 1e-8, and one step costs one real FFT and
one inverse of the HR size: decimation is a mean over aliases, its adjoint a tiling, both done on half spectra.

Shape letters: B batch, C channels, h w LR size, H = s*h, W = s*w; `Wh` = W // 2 + 1 and `wh` = w // 2 + 1 columns
of a half spectrum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def data_step(x: Tensor, y: Tensor, kernel: Tensor, alpha: Tensor, scale: int) -> Tensor:
    """Return the exact minimiser of |y - (z * k) down_s|^2 + alpha |z - x|^2 over z (USRNet, CVPR 2020, Eq. 5).

    Args:
        x: (B, C, s*h, s*w) previous estimate, on any device.
        y: (B, C, h, w) LR image.
        kernel: (B, k, k), k odd, k <= min(s*h, s*w); centre at its middle pixel, true convolution.
        alpha: (B, 1, 1, 1) weight of the previous estimate, > 0.
        scale: s >= 1.

    Returns:
        (B, C, s*h, s*w), float32 (float64 for float64 inputs), also under autocast.

    Raises:
        ValueError: shapes that do not fit each other, an even kernel, a kernel larger than the image.
    """
    if x.ndim != 4 or y.ndim != 4 or x.shape[:2] != y.shape[:2]:
        raise ValueError(f"data_step needs x (B,C,s*h,s*w) and y (B,C,h,w), got {tuple(x.shape)} and {tuple(y.shape)}")
    if x.shape[2:] != (scale * y.shape[2], scale * y.shape[3]):
        raise ValueError(f"x {tuple(x.shape)} is not {scale} times the size of y {tuple(y.shape)}")
    if alpha.shape not in {(y.shape[0], 1, 1, 1), (1, 1, 1, 1)}:
        raise ValueError(f"alpha must be (B,1,1,1) = {(y.shape[0], 1, 1, 1)}, got {tuple(alpha.shape)}")
    return BlurOperator.of(kernel, scale, y).step(x, spectrum(y), alpha)


@dataclass(frozen=True)
class BlurOperator:
    """Hold what depends only on kernel, scale and size. It is computed once per kernel and used by every unfolding."""

    transfer: Tensor  # (B, 1, H, Wh) complex: F(k), the kernel's centre at the origin
    power: Tensor  # (B, 1, h, wh) real: the mean of |F(k)|^2 over aliases, the diagonal of S B B^H S^T
    scale: int
    width: int  # width of the LR image; a half spectrum does not show whether it is odd or even

    @classmethod
    def of(cls, kernel: Tensor, scale: int, y: Tensor) -> BlurOperator:
        """Make the operator of (B, k, k) kernels for LR images like `y` (B, C, h, w).

        Raises ValueError for shapes that do not fit, an even kernel, or one larger than the image.
        """
        height, width = y.shape[-2:]
        _check_kernel(kernel, scale, y)
        transfer = transfer_function(kernel, scale * height, scale * width)
        power = transfer.real.square() + transfer.imag.square()
        return cls(transfer, _fold(power, scale, scale * width), scale, width)

    def step(self, x: Tensor, y_spectrum: Tensor, alpha: Tensor) -> Tensor:
        """Return the result of the data step from `x` (B, C, H, W), given `spectrum(y)` and alpha (B, 1, 1, 1)."""
        residual = y_spectrum - _fold(self.transfer * spectrum(x), self.scale, self.scale * self.width)
        correction = self._adjoint(residual / (self.power + alpha.to(self.power.dtype)))
        return x.to(correction.dtype) + correction

    def apply(self, x: Tensor) -> Tensor:
        """Blur and decimate, (x * k) down_s: (B, C, H, W) -> (B, C, h, w). It equals `pipeline.degrade.degrade`."""
        folded = _fold(self.transfer * spectrum(x), self.scale, self.scale * self.width)
        return torch.fft.irfft2(folded, s=(folded.shape[-2], self.width))

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the adjoint, B^H S^T y: (B, C, h, w) -> (B, C, H, W)."""
        return self._adjoint(spectrum(y))

    def _adjoint(self, y_spectrum: Tensor) -> Tensor:
        """Apply B^H S^T to a half LR spectrum: tile it over the aliases, multiply by conj F(k), transform back."""
        scale, width = self.scale, self.scale * self.width
        batch, channels, height, _ = y_spectrum.shape
        columns = self.transfer.shape[-1]
        if scale > 1:
            # Columns repeat with period w; rows by broadcasting over the s blocks of the transfer function.
            full = _complete(y_spectrum, self.width)
            y_spectrum = full.repeat(1, 1, 1, (columns - 1) // self.width + 1)[..., :columns]
        blocks = self.transfer.conj().reshape(batch, 1, scale, height, columns)
        product = (blocks * y_spectrum[:, :, None]).reshape(batch, channels, scale * height, columns)
        return torch.fft.irfft2(product, s=(scale * height, width))


def spectrum(image: Tensor) -> Tensor:
    """Return the half spectrum (..., H, W // 2 + 1) of a real image, in float32 or better: bf16 has no FFT."""
    return torch.fft.rfft2(image if image.dtype == torch.float64 else image.float())


def transfer_function(kernel: Tensor, height: int, width: int) -> Tensor:
    """Return the half spectrum (B, 1, height, width // 2 + 1) of (B, k, k) kernels whose middle pixel is the origin."""
    size = kernel.shape[-1]
    padded = torch.nn.functional.pad(kernel, (0, width - size, 0, height - size))
    return spectrum(padded.roll((-(size // 2), -(size // 2)), (-2, -1)))[:, None]


def _fold(half: Tensor, scale: int, width: int) -> Tensor:
    """Average over the s x s aliases: half spectrum of an H x W image -> that of its decimated h x w image."""
    if scale == 1:
        return half
    *lead, height, columns = half.shape
    rows = half.reshape(*lead, scale, height // scale, columns).mean(-3)
    full = _complete(rows, width).reshape(*lead, height // scale, scale, width // scale)
    return full[..., : width // scale // 2 + 1].mean(-2)


def _complete(half: Tensor, width: int) -> Tensor:
    """Return all `width` columns of a half spectrum, by the symmetry F(-u, -v) = conj F(u, v) of real images."""
    mirrored = half[..., 1 : width - half.shape[-1] + 1].flip(-2, -1).roll(1, -2)
    return torch.cat((half, mirrored.conj() if half.is_complex() else mirrored), -1)


def _check_kernel(kernel: Tensor, scale: int, y: Tensor) -> None:
    batch, _, height, width = y.shape
    if kernel.ndim != 3 or kernel.shape[1] != kernel.shape[2] or kernel.shape[0] not in {1, batch}:
        raise ValueError(f"kernel must be (B,k,k) for images {tuple(y.shape)}, got {tuple(kernel.shape)}")
    if kernel.shape[-1] % 2 == 0:
        raise ValueError(f"kernel {tuple(kernel.shape)} has an even side; a centre pixel needs an odd one")
    if scale < 1:
        raise ValueError(f"scale {scale} for images {tuple(y.shape)}; it must be at least 1")
    if kernel.shape[-1] > scale * min(height, width):
        raise ValueError(
            f"kernel {tuple(kernel.shape)} is larger than the HR image {scale * height} x {scale * width}; "
            "crop the kernel or use a larger image"
        )
