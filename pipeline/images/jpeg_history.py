"""Detection of an earlier, stronger JPEG compression: messengers and web sites compress pictures again.

A file's own tables only describe its last compression, and a PNG has none. But coefficients that were once rounded stay
near multiples of their quantisation steps, on the original grid of blocks, even after a crop. So for each likely grid
(its coefficients are sparser than those of neighbouring grids) the usual tables of each quality are tried. The
coefficients are nearer to the multiples of the table that they were rounded with than to those of all other tables.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from pipeline.images.convert import luma
from pipeline.images.jpeg_level import dct_blocks, jpeg_error, quantisation_tables

_SIDE = 320  # side of the middle part that is analysed
_QUALITIES = range(10, 91)
_NEIGHBOURS = 12  # qualities up and down whose distances a table is compared with
_NEARER, _MUCH_NEARER = 0.75, 0.5  # ratio to their distances and to chance; the second on the last compression's grid
_STRONGER = 1.3  # smallest ratio of steps to those of the last compression, by the median
_SPARSER = 4.0  # deviations below the median of similar grids
_LEAST_SIDE, _LEAST_COEFFICIENTS = 32, 200


class EarlierCoding(NamedTuple):
    """Hold an earlier compression of a picture."""

    quality: int  # approximate quality on libjpeg's scale, 10 ... 90
    error: float  # RMS error that it left, [0, 1] scale


def earlier_coding(pixels: np.ndarray, last: np.ndarray | None) -> EarlierCoding | None:
    """Find an earlier, stronger JPEG compression of a picture, if its pixels show one.

    Args:
        pixels: (h, w) or (h, w, 3) uint8 as stored in the file, not turned.
        last: (64,) luma steps of the file's own JPEG, in natural order; None for another format.

    Returns:
        The compression with the error that it left, which `jpeg_error` estimates from the coefficients; None if nothing
        is found. A compression cannot be found if its quality is above 90, if its tables are unusual, if the picture
        was reduced or turned since, or if it has nearly the strength of the last one on another grid.
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
    # Programs that compress pictures again usually store chroma at half the size.
    error = jpeg_error(pixels[row:, column:], quantisation_tables(quality), 2)
    return EarlierCoding(quality, error)


def _likely_grids(grey: np.ndarray) -> list[tuple[int, int]]:
    """Return offsets whose coefficients are sparser than those of similar offsets.

    The last compression's own grid makes all offsets that share its rows or columns sparser than the others.
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
    """Return the smallest distance of coefficients to multiples of a table's steps, with the table's quality."""
    sizes = np.abs(coefficients.reshape(-1, 64))[:, 1:]
    tables = _luma_tables()
    if last is not None:
        # Multiples of the last steps are near those of many stronger tables. The strongest tables come first.
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
    """Return the (64,) steps of each quality."""
    return [np.array(quantisation_tables(quality)[0], np.float64) for quality in _QUALITIES]


def _distance(sizes: np.ndarray, steps: np.ndarray) -> float:
    """Return the mean squared distance to the multiples of the steps: 1 if nothing was rounded to them."""
    telling = (sizes > steps / 2) & (steps > 3)  # the others are nearest to zero in any case
    if telling.sum() < _LEAST_COEFFICIENTS:
        return np.inf
    ratio = (sizes / steps)[telling]
    return float(12 * np.square(ratio - ratio.round()).mean())
