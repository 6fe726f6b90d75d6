"""Image and kernel metrics in pure NumPy, one value per image.

Images are (H, W, 3) or (H, W), uint8 (peak 255) or floating point (peak 1), both of one kind. Luma is BT.601 studio
swing (16..235) without rounding, the convention of the super-resolution literature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from scipy import fft

Channel = Literal["rgb", "y"]

_LUMA = np.array([65.481, 128.553, 24.966]) / 255.0
_WINDOW, _WINDOW_SIGMA = 11, 1.5
_LANCZOS_REACH = 8


def psnr(image: np.ndarray, reference: np.ndarray, *, border: int = 0, channel: Channel = "rgb") -> float:
    """Compute the peak signal-to-noise ratio in dB. The squared error is averaged over all pixels and channels jointly.

    A stack of images (N, H, W, 3) gives the mean of the N values, never the value of the pooled error.

    Args:
        image: the estimate, (H, W, 3), (H, W) or (N, H, W, 3).
        reference: the truth, of the same shape and type.
        border: pixels cropped from every side before comparing.
        channel: `rgb`, or `y` for BT.601 luma (needs three channels).

    Returns:
        dB; `inf` for equal images.

    Raises:
        ValueError: shapes or types differ, or the border leaves nothing.
    """
    if image.ndim == 4 and image.shape == reference.shape:
        return float(
            np.mean([psnr(a, b, border=border, channel=channel) for a, b in zip(image, reference, strict=True)])
        )
    a, b = _comparable(image, reference, border, channel)
    return _decibel(float(np.mean((a - b) ** 2)))


def ssim(image: np.ndarray, reference: np.ndarray, *, border: int = 0, channel: Channel = "rgb") -> float:
    """Compute structural similarity (Wang et al. 2004), 11 x 11 Gaussian windows of sigma 1.5 inside the image.

    The value equals `skimage.metrics.structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False)`, averaged over the channels. A stack of images gives the mean of their values.

    Args:
        image: the estimate, (H, W, 3), (H, W) or (N, H, W, 3), sides of at least 11.
        reference: the truth, of the same shape and type.
        border: pixels cropped from every side before comparing.
        channel: `rgb`, or `y` for BT.601 luma.

    Raises:
        ValueError: shapes or types differ, or a side is below 11 pixels without the border.
    """
    if image.ndim == 4 and image.shape == reference.shape:
        return float(
            np.mean([ssim(a, b, border=border, channel=channel) for a, b in zip(image, reference, strict=True)])
        )
    a, b = _comparable(image, reference, border, channel)
    if min(a.shape[:2]) < _WINDOW:
        raise ValueError(f"SSIM needs {_WINDOW} x {_WINDOW} pixels, got {a.shape[0]} x {a.shape[1]} after the crop")
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    cov = _blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    value = ((2 * mean_a * mean_b + c1) * (2 * cov + c2)) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    inside = slice(_WINDOW // 2, -(_WINDOW // 2))
    return float(np.mean(value[inside, inside]))


@dataclass(frozen=True)
class Shifted:
    """Hold the PSNR after the best translation of the estimate."""

    psnr: float  # dB
    dy: float  # pixels by which the estimate was moved, down
    dx: float  # and right


def psnr_shifted(image: np.ndarray, reference: np.ndarray, *, border: int = 0, reach: int = 6) -> Shifted:
    """Compute RGB PSNR after the best circular sub-pixel shift of `image`.

    No blind method can detect a translation that its kernel absorbs, and this value does not penalise it. The
    whole-pixel shift comes from the cross-correlation of the lumas, the fraction from Gauss-Newton steps on the squared
    error (resampling by Lanczos-4). The circular shift suits periodic data, so the border crop stays that of `psnr`,
    and the value is never lower.

    Args:
        image: the estimate, (H, W, 3).
        reference: the truth, of the same shape and type.
        border: pixels cropped from every side before comparing.
        reach: largest shift in each direction, pixels.

    Raises:
        ValueError: shapes or types differ, or the border leaves nothing.
    """
    plain = psnr(image, reference, border=border)
    moving, fixed = luma(image).astype(np.float32), luma(reference).astype(np.float32)
    dy, dx = _whole_shift(moving, fixed, reach)
    inside = slice(border, -border or None)
    for _ in range(6):
        moved = _translate(moving, dy, dx)
        gy, gx = np.gradient(moved)
        error = (fixed - moved)[inside, inside].ravel()
        slopes = np.stack([-gy[inside, inside].ravel(), -gx[inside, inside].ravel()])
        step = np.linalg.lstsq(slopes @ slopes.T, slopes @ error, rcond=None)[0]
        # A linearised image is valid within a range of about one pixel.
        step = np.clip(step, -0.5, 0.5)
        dy, dx = float(np.clip(dy + step[0], -reach, reach)), float(np.clip(dx + step[1], -reach, reach))
        if np.abs(step).max() < 1 / 64:  # half a step of the Lanczos grid
            break
    a, b = _scaled(image), _scaled(reference)
    error_squared = np.mean((_translate(a.astype(np.float32), dy, dx) - b)[inside, inside] ** 2)
    best = _decibel(float(error_squared))
    return Shifted(best, dy, dx) if best > plain else Shifted(plain, 0.0, 0.0)


@dataclass(frozen=True)
class KernelError:
    """Hold how well an estimated kernel fits the true one, up to a translation."""

    psnr: float  # dB, the peak is the true kernel's maximum
    correlation: float  # cosine of the angle between the two; 1 is perfect
    dy: float  # pixels by which the estimate was moved, down
    dx: float  # and right


def compare_kernels(estimate: np.ndarray, truth: np.ndarray) -> KernelError:
    """Compare two kernels, each (k, k) with its own odd side, after the best sub-pixel shift.

    Both are centred on a grid of the larger side plus a margin for the shift. The shift maximises the
    cross-correlation, refined to a fortieth of a pixel by the Fourier transform.
    """
    side = 2 * max(*estimate.shape, *truth.shape) + 1
    a, b = embed_kernel(estimate, side), embed_kernel(truth, side)
    spectrum = np.fft.fft2(b) * np.conj(np.fft.fft2(a))
    frequency = np.fft.fftfreq(side)
    whole = np.fft.ifft2(spectrum).real
    row, column = np.unravel_index(int(np.argmax(whole)), whole.shape)
    steps = np.arange(-40, 41) / 40
    ys, xs = row + steps, column + steps
    fine = (np.exp(2j * np.pi * np.outer(ys, frequency)) @ spectrum @ np.exp(2j * np.pi * np.outer(frequency, xs))).real
    i, j = np.unravel_index(int(np.argmax(fine)), fine.shape)
    dy, dx = ((float(value) + side / 2) % side - side / 2 for value in (ys[i], xs[j]))
    ramp = np.exp(-2j * np.pi * (frequency[:, None] * dy + frequency[None] * dx))
    moved = np.fft.ifft2(np.fft.fft2(a) * ramp).real
    energy = float(np.linalg.norm(moved) * np.linalg.norm(b))
    correlation = float(np.sum(moved * b)) / max(energy, 1e-30)
    # The error is measured on the true kernel's support, so that the margin does not dilute it.
    error = float(np.sum((moved - b) ** 2)) / truth.size
    peak = float(np.max(truth)) ** 2
    return KernelError(10 * float(np.log10(peak / max(error, 1e-20))), correlation, dy, dx)


def embed_kernel(kernel: np.ndarray, side: int) -> np.ndarray:
    """Pad an odd (k, k) kernel with zeros around its centre to (side, side), or crop it if it is larger."""
    size = kernel.shape[0]
    if side < size:
        cut = (size - side) // 2
        return np.asarray(kernel[cut : cut + side, cut : cut + side])
    before = (side - size) // 2
    return np.pad(kernel, (before, side - size - before))


def luma(image: np.ndarray) -> np.ndarray:
    """Compute (H, W) float64 BT.601 studio-swing luma, 16..235, of (H, W, 3) or (H, W); grey is unchanged."""
    scaled = _scaled(image)
    return scaled if scaled.ndim == 2 else np.asarray(scaled @ _LUMA + 16.0)


def _comparable(
    image: np.ndarray, reference: np.ndarray, border: int, channel: Channel
) -> tuple[np.ndarray, np.ndarray]:
    """Convert both images to the 0..255 scale in float64, and crop them."""
    if image.shape != reference.shape:
        raise ValueError(f"images of different shape: {image.shape} and {reference.shape}")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise ValueError(f"an image is (H, W, 3) or (H, W), got {image.shape}")
    if (image.dtype == np.uint8) != (reference.dtype == np.uint8):
        raise ValueError(f"images on different scales: {image.dtype} and {reference.dtype}")
    if border < 0 or 2 * border >= min(image.shape[:2]):
        raise ValueError(f"a border of {border} pixels leaves nothing of {image.shape[0]} x {image.shape[1]}")
    inside = slice(border, -border or None)
    pair = [luma(part) if channel == "y" else _scaled(part) for part in (image, reference)]
    return pair[0][inside, inside], pair[1][inside, inside]


def _scaled(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float64) * (1.0 if image.dtype == np.uint8 else 255.0)


def _decibel(error: float) -> float:
    return float("inf") if error == 0 else float(10 * np.log10(255.0**2 / error))


def _blur(image: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.GaussianBlur(image, (_WINDOW, _WINDOW), _WINDOW_SIGMA))


def _whole_shift(moving: np.ndarray, fixed: np.ndarray, reach: int) -> tuple[float, float]:
    """Find the circular whole-pixel shift within `reach` with the highest cross-correlation."""
    # SciPy's transforms stay in float32.
    spectrum = fft.rfft2(fixed - fixed.mean()) * np.conj(fft.rfft2(moving - moving.mean()))
    correlation = fft.irfft2(spectrum, s=fixed.shape)
    shifts = np.arange(-reach, reach + 1)
    near = correlation[np.ix_(shifts, shifts)]
    row, column = np.unravel_index(int(np.argmax(near)), near.shape)
    return float(shifts[row]), float(shifts[column])


def _translate(image: np.ndarray, dy: float, dx: float) -> np.ndarray:
    """Shift an image circularly by (dy, dx) pixels, with Lanczos-4 interpolation on a grid of 1/32 pixel."""
    whole_y, whole_x = round(dy), round(dx)
    rolled = np.roll(image, (whole_y, whole_x), axis=(0, 1))
    if whole_y == dy and whole_x == dx:
        return rolled
    pad = _LANCZOS_REACH
    padded = np.pad(rolled, [(pad, pad), (pad, pad)] + [(0, 0)] * (image.ndim - 2), mode="wrap")
    matrix = np.array([[1, 0, dx - whole_x], [0, 1, dy - whole_y]], np.float64)
    moved = cv2.warpAffine(padded, matrix, (padded.shape[1], padded.shape[0]), flags=cv2.INTER_LANCZOS4)
    return np.asarray(moved)[pad:-pad, pad:-pad]
