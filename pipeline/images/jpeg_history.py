"""Whether pixels were a stronger JPEG before they came into their file: messengers and web sites store pictures again.

A file's own tables tell only of its last coding; a PNG tells of none. But coefficients that were rounded once stay near
multiples of the steps they were rounded to, on the grid of blocks of then, whatever was cut off since. So for each
grid that looks like one (its coefficients are sparser than those of the grids beside it) the usual tables of each
quality are tried: a table that the coefficients were rounded with leaves them nearer its multiples than all other
tables do.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from pipeline.images.convert import luma
from pipeline.images.jpeg_level import dct_blocks, jpeg_error, quantisation_tables

_SIDE = 320  # of the middle part that is looked at
_QUALITIES = range(10, 91)
_NEIGHBOURS = 12  # qualities up and down whose distances a table is compared with
_NEARER, _MUCH_NEARER = 0.75, 0.5  # than those, and than chance would have it; the second on the last coding's grid
_STRONGER = 1.3  # than the last coding, by the median step
_SPARSER = 4.0  # deviations from the median of the like grids
_LEAST_SIDE, _LEAST_COEFFICIENTS = 32, 200


class EarlierCoding(NamedTuple):
    """Hold a coding that a picture went through before."""

    quality: int  # as libjpeg counts, 10 ... 90; about
    error: float  # RMS on the [0, 1] scale that it left


def earlier_coding(pixels: np.ndarray, last: np.ndarray | None) -> EarlierCoding | None:
    """Find the stronger JPEG that a picture was before, if its pixels show one.

    Args:
        pixels: (h, w) or (h, w, 3) uint8 as stored in the file, not turned.
        last: (64,) luma steps of the JPEG that the file is, in natural order; None for another format.

    Returns:
        the coding with the error that it left, which `jpeg_error` reads off the coefficients; None where nothing shows:
        one of quality above 90, with tables of its own kind, of a picture that was made smaller or turned since, or of
        nearly the strength of the last one on another grid.
    """
    if min(pixels.shape[:2]) < _LEAST_SIDE:
        return None
    top, left = (max(0, (side - _SIDE) // 2) // 8 * 8 for side in pixels.shape[:2])
    part = pixels[top : top + _SIDE, left : left + _SIDE].astype(np.float32)
    grey = part if part.ndim == 2 else luma(part)
    matches = []
    for row, column in _likely_grids(grey):
        same = last if row == column == 0 else None
        if (match := _quality(dct_blocks(grey[row:, column:]), same)) is not None:
            matches.append((*match, row, column))
    if not matches:
        return None
    _, quality, row, column = min(matches)
    # Chroma is stored at half the size by those who store pictures again.
    error = jpeg_error(pixels[row:, column:], quantisation_tables(quality), 2)
    return EarlierCoding(quality, error)


def _likely_grids(grey: np.ndarray) -> list[tuple[int, int]]:
    """Return offsets whose coefficients are sparser than those of the offsets like them.

    The last coding's own grid makes all offsets that share its rows or columns sparser than the others.
    """
    sparsity = np.empty((8, 8))
    for row in range(8):
        for column in range(8):
            coefficients = dct_blocks(grey[row:, column:]).reshape(-1, 64)[:, 1:]
            sparsity[row, column] = np.log1p(np.abs(coefficients)).mean()
    rows, columns = np.mgrid[:8, :8] > 0
    middle = np.median(sparsity)
    found = [(0, 0)] if sparsity[0, 0] < middle - _SPARSER * _deviation(sparsity) else []
    for alike in (rows & ~columns, ~rows & columns, rows & columns):
        least = divmod(int(np.where(alike, sparsity, np.inf).argmin()), 8)
        if sparsity[least] < np.median(sparsity[alike]) - _SPARSER * _deviation(sparsity[alike]):
            found.append(least)
    return found


def _deviation(values: np.ndarray) -> float:
    return float(np.median(np.abs(values - np.median(values)))) + 1e-3


def _quality(coefficients: np.ndarray, last: np.ndarray | None) -> tuple[float, int] | None:
    """How near they are to multiples of a table's steps, against chance, and the quality of the nearest table."""
    sizes = np.abs(coefficients.reshape(-1, 64))[:, 1:]
    tables = _luma_tables()
    if last is not None:
        # Multiples of the last steps are not far from those of many a stronger table. The strongest come first.
        tables = [table for table in tables if np.median(table / np.maximum(last, 1)) >= _STRONGER]
    distance = np.array([_distance(sizes, table[1:]) for table in tables])
    found = []
    for number, value in enumerate(distance):
        around = distance[max(0, number - _NEIGHBOURS) : number + _NEIGHBOURS + 1]
        share = _NEARER if last is None else _MUCH_NEARER
        if value < share * min(1.0, float(np.median(around))):
            found.append((float(value), _QUALITIES[number]))
    return min(found, default=None)


@functools.cache
def _luma_tables() -> list[np.ndarray]:
    """(64,) steps of each of the qualities."""
    return [np.array(quantisation_tables(quality)[0], np.float64) for quality in _QUALITIES]


def _distance(sizes: np.ndarray, steps: np.ndarray) -> float:
    """Mean square distance from the multiples of the steps: 1 where nothing was rounded to them."""
    telling = (sizes > steps / 2) & (steps > 3)  # the others are nearest zero, whatever made them
    if telling.sum() < _LEAST_COEFFICIENTS:
        return np.inf
    ratio = (sizes / steps)[telling]
    return float(12 * np.square(ratio - ratio.round()).mean())
