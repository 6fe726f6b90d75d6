"""The centre of a kernel, and the comparison of kernels.

The blur's origin is the middle pixel. Gaussian and disk kernels have their centre there. Motion kernels are
*recentred*: their centre of mass is exactly on the middle pixel, because their absolute shift moves the picture as a
whole and no blind method can detect it. Benchmark and loaded kernels are not changed: `recentre` them before
comparing with estimates, or compare with `correlation`, which ignores the shift.

Decimation keeps the upper-left pixel of each s x s block, so a picture made with a centred kernel is (s - 1) / 2
pixels up and left of a bicubic one. `align_to_block_centres` shifts a kernel to undo this.
"""

from __future__ import annotations

import numpy as np

from kernels_bank.runtime.errors import BadRequestError

# Number of kernels correlated together, so that their transforms stay in the cache.
_BLOCK = 64


def centroid(kernels: np.ndarray) -> np.ndarray:
    """Return the centre of mass relative to the middle pixel.

    Args:
        kernels: (N, k, k).

    Returns:
        (N, 2) float64: rows down, columns right.
    """
    axis = np.arange(kernels.shape[-1], dtype=np.float64) - kernels.shape[-1] // 2
    mass = kernels.sum(axis=(1, 2), dtype=np.float64)
    rows = (kernels.sum(axis=2, dtype=np.float64) * axis).sum(axis=1)
    columns = (kernels.sum(axis=1, dtype=np.float64) * axis).sum(axis=1)
    return np.stack([rows, columns], axis=1) / mass[:, None]


def shift(kernels: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Shift kernels by fractions of a pixel, bilinearly. Values outside the window are lost; the rest is normalised.

    Args:
        kernels: (N, k, k) float.
        by: (N, 2) or (2,): rows down, columns right.

    Returns:
        (N, k, k) of the same dtype. Whole pixels move without interpolation.

    Raises:
        BadRequestError: the kernels are of integers, or the sum of one in the window is not above 0.
    """
    if kernels.dtype.kind != "f":
        raise BadRequestError(f"kernels to shift have fractions; floating point is expected, got {kernels.dtype}")
    by = np.broadcast_to(np.asarray(by, dtype=np.float64), (len(kernels), 2))
    side = kernels.shape[-1]
    whole = np.floor(by).astype(np.int64)
    part = by - whole
    moved = np.zeros(kernels.shape, dtype=np.float64)
    batch = np.arange(len(kernels))[:, None, None]
    for dy in (0, 1):
        for dx in (0, 1):
            weight = np.abs(1 - dy - part[:, 0]) * np.abs(1 - dx - part[:, 1])
            rows = np.arange(side)[None] - whole[:, :1] - dy
            columns = np.arange(side)[None] - whole[:, 1:] - dx
            inside = ((rows >= 0) & (rows < side))[:, :, None] & ((columns >= 0) & (columns < side))[:, None, :]
            taken = kernels[batch, np.clip(rows, 0, side - 1)[:, :, None], np.clip(columns, 0, side - 1)[:, None, :]]
            moved += weight[:, None, None] * np.where(inside, taken, 0)
    mass = moved.sum(axis=(1, 2), keepdims=True)
    if not (mass > 0).all():  # NaN too
        raise BadRequestError(
            "a kernel has no positive sum, or was shifted out of its window; use a larger window or a smaller shift"
        )
    return (moved / mass).astype(kernels.dtype)


def recentre(kernels: np.ndarray, *, subpixel: bool = True) -> np.ndarray:
    """Put the centre of mass on the middle pixel.

    Args:
        kernels: (N, k, k) float.
        subpixel: whether to shift exactly, by bilinear interpolation, which blurs slightly; otherwise by whole pixels,
            without any blur, to within half a pixel.

    Returns:
        (N, k, k) of the same dtype.
    """
    offset = -centroid(kernels)
    return shift(kernels, offset if subpixel else np.rint(offset))


def align_to_block_centres(kernels: np.ndarray, scale: int) -> np.ndarray:
    """Shift kernels up and left by (s - 1) / 2, so that the kept pixel represents the centre of its s x s block.

    With a centred kernel the result, blurred and decimated, is aligned with a bicubic reduction (USRNet's
    `shift_pixel`). KernelGAN, FKP and MANet use other conventions.
    """
    return shift(kernels, np.full(2, -(scale - 1) / 2))


def correlation(kernels: np.ndarray, targets: np.ndarray, *, orientations: bool = False) -> np.ndarray:
    """Correlate kernels whatever their shift: the largest Pearson correlation of the pixels over whole-pixel shifts.

    Args:
        kernels: (N, k, k), up to a whole bank.
        targets: (M, j, j), possibly of another side.
        orientations: whether to maximise over the 8 flips and quarter turns of the target, too.

    Returns:
        (N, M) float32 in [-1, 1], exact to 1e-5. Both are padded with zeros to a common size for any overlap.
    """
    from scipy import fft

    side = kernels.shape[-1] + targets.shape[-1] - 1
    field = fft.next_fast_len(side, real=True)

    def spectra(values: np.ndarray) -> np.ndarray:
        centred = np.zeros((len(values), field, field))
        centred[:, : values.shape[1], : values.shape[2]] = values
        centred -= centred.mean(axis=(1, 2), keepdims=True)
        centred /= np.sqrt((centred * centred).sum(axis=(1, 2), keepdims=True))
        return fft.rfft2(centred.astype(np.float32))

    # (versions, M, field, field / 2 + 1)
    versions = [targets]
    if orientations:
        versions = [np.rot90(f, q, axes=(1, 2)) for f in (targets, targets[:, :, ::-1]) for q in range(4)]
    seen = np.stack([spectra(version).conj() for version in versions])
    best = np.empty((len(kernels), len(targets)), dtype=np.float32)
    for start in range(0, len(kernels), _BLOCK):
        block = spectra(kernels[start : start + _BLOCK])
        for m in range(len(targets)):
            peaks = [fft.irfft2(block * version[m], s=(field, field)).max(axis=(1, 2)) for version in seen]
            best[start : start + _BLOCK, m] = np.max(peaks, axis=0)
    return best
