"""The error of a JPEG's pixels, estimated from its quantisation tables and its own coefficients.

The steps of a table alone say little: most coefficients are rounded to zero, and their error is then their own small
size, which differs from picture to picture. So the distribution of coefficients is estimated from the picture. At each
of the 63 AC frequencies they follow a Laplace distribution, whose width follows from the share of zeros. If nearly all
or nearly none are zero, the width comes from a line through the other frequencies, on logarithmic axes. The mean
squared error then has a closed form.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

_MOST_PIXELS = 1 << 20  # pixels analysed, in bands across the picture
_BAND = 16  # rows of a band, a block of subsampled chroma
_TELLING = (0.02, 0.97)  # shares of zeros from which a width can be estimated
_LAPLACE_EXCESS = 1.32  # measured factor by which the law overstates the error, as real coefficients are peakier
_ENOUGH = 6  # number of widths from which a slope can be fitted
_USUAL_SLOPE, _FLATTEST = -1.5, -0.7  # slopes of log width over log frequency
_NARROWEST = 1e-3  # smallest width of a frequency, grey levels


def jpeg_error(pixels: np.ndarray, tables: Sequence[Sequence[int]], subsampling: int) -> float:
    """Estimate the RMS difference between a JPEG's pixels and the original picture.

    Args:
        pixels: (h, w) or (h, w, 3) uint8 as decoded, not turned: blocks begin in the upper-left corner.
        tables: 64 quantisation steps each in natural order, for luma and chroma; grey pictures have one table.
        subsampling: Pillow's number of the chroma subsampling: 0 is 4:4:4, 1 is 4:2:2, 2 is 4:2:0.

    Returns:
        The RMS difference on the [0, 1] scale, over all channels.
    """
    pixels = _bands(pixels)
    if pixels.ndim == 2:
        return float(np.sqrt(_channel_error(pixels.astype(np.float32), tables[0])) / 255)
    red, green, blue = np.moveaxis(pixels.astype(np.float32), -1, 0)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = tables[min(1, len(tables) - 1)]
    step = (1 if subsampling < 2 else 2, 1 if subsampling < 1 else 2)
    b_error, r_error = (
        _channel_error(_shrunk(part, *step), chroma) for part in ((blue - luma) / 1.772, (red - luma) / 1.402)
    )
    # From the squared errors of Y, Cb and Cr (JFIF) to their mean over R, G and B.
    weights = (1.772**2 + 0.344136**2) / 3, (1.402**2 + 0.714136**2) / 3
    total = _channel_error(luma, tables[0]) + weights[0] * b_error + weights[1] * r_error
    return float(np.sqrt(total) / 255)


def quantisation_tables(quality: int) -> list[list[int]]:
    """Return libjpeg's tables of luma and chroma for a quality from 1 to 100, in natural order."""
    ok, data = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert ok, "8 x 8 black pixels are always encoded"
    with Image.open(io.BytesIO(data.tobytes())) as image:
        return [list(table) for _, table in sorted(image.quantization.items())]  # type: ignore[attr-defined]


def _channel_error(channel: np.ndarray, table: Sequence[int]) -> float:
    """Return the mean squared error of one channel, grey levels."""
    coefficients = dct_blocks(channel)
    if not len(coefficients):
        return 0.0
    steps = np.asarray(table, np.float64).reshape(8, 8)
    zero = (np.abs(coefficients) < steps / 2).mean(0)
    row, column = np.mgrid[:8, :8]
    frequency = np.hypot(row, column)
    told = (zero > _TELLING[0]) & (zero < _TELLING[1]) & (frequency > 0)
    rate = np.full((8, 8), np.inf)
    rate[told] = -2 * np.log1p(-zero[told]) / steps[told]
    rest = ~told & (frequency > 0)
    # Even with nearly all zeros, their share gives an upper bound of the width.
    few = np.maximum(1 - zero, 0.5 / len(coefficients)).clip(None, _TELLING[1])
    widest = np.sqrt(2) * steps / (-2 * np.log(few))
    line = _line(frequency, np.where(told, np.sqrt(2) / rate, widest / 2), told)
    width = np.where(zero >= _TELLING[1], np.minimum(line, widest), line)
    rate[rest] = np.sqrt(2) / width[rest].clip(_NARROWEST)
    error = _laplace_error(rate, steps)
    error[0, 0] = steps[0, 0] ** 2 / 12
    return float(error.mean()) / _LAPLACE_EXCESS**2


def _line(frequency: np.ndarray, width: np.ndarray, told: np.ndarray) -> np.ndarray:
    """Return (8, 8) standard deviations on the line through the `told` ones, with the usual slope if those are few."""
    if not told.any():
        told = frequency == 1  # uses half of the upper bounds there
    logs = np.log(frequency[told]), np.log(width[told])
    slope = np.polyfit(*logs, 1)[0] if told.sum() >= _ENOUGH else _USUAL_SLOPE
    slope = min(slope, _FLATTEST)
    start = (logs[1] - slope * logs[0]).mean()
    return np.asarray(np.exp(start + slope * np.log(frequency.clip(1))))


def _laplace_error(rate: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return the mean squared error of rounding a Laplace variable of this rate to multiples of the steps."""
    half = rate * steps / 2
    rate = np.where(np.isfinite(rate), rate, 1.0)
    half = np.where(np.isfinite(half), half, 1.0)
    decay = np.exp(-half)
    # The integral of c^2 over |c| < q / 2, then of (c - q)^2 over the bins beyond, all of one shape.
    inside = (2 - decay * (half**2 + 2 * half + 2)) / rate**2
    whole = np.exp(-2 * half)
    spread = (half**2 - 2 * half + 2 - whole * (half**2 + 2 * half + 2)) / np.maximum(1 - whole, 1e-12) / rate**2
    return np.asarray(inside + decay * spread)


def _bands(pixels: np.ndarray) -> np.ndarray:
    """Return the picture; if it is large, a limited number of evenly spread bands of it, one below the other."""
    count = pixels.shape[0] // _BAND
    step = -(-pixels.shape[0] * pixels.shape[1] // _MOST_PIXELS)
    if step < 2 or count < 2:
        return pixels
    bands = pixels[: count * _BAND].reshape(count, _BAND, *pixels.shape[1:])[::step]
    return bands.reshape(-1, *pixels.shape[1:])


def dct_blocks(channel: np.ndarray) -> np.ndarray:
    """Transform the whole blocks of a channel (h, w), 0 ... 255: (n, 8, 8) orthonormal DCT-II coefficients."""
    height, width = (side - side % 8 for side in channel.shape)
    blocks = channel[:height, :width].reshape(height // 8, 8, width // 8, 8).swapaxes(1, 2).reshape(-1, 8, 8) - 128.0
    basis = _dct_basis()
    return np.asarray(basis @ blocks @ basis.T)


def _shrunk(channel: np.ndarray, down: int, right: int) -> np.ndarray:
    """Return the means of `down` x `right` cells, as chroma is stored."""
    height, width = channel.shape[0] // down, channel.shape[1] // right
    return np.asarray(channel[: height * down, : width * right].reshape(height, down, width, right).mean((1, 3)))


def _dct_basis() -> np.ndarray:
    """Return the (8, 8) orthonormal DCT-II; rows are frequencies."""
    place, frequency = np.arange(8), np.arange(8)[:, None]
    basis = np.cos((2 * place + 1) * frequency * np.pi / 16) / 2
    basis[0] /= np.sqrt(2)
    return np.asarray(basis)
