"""Kernels from files of other programs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from kernels_bank.runtime.errors import ArtefactError, BadRequestError

# Largest ratio of negative to positive values: above the lobes of any reduction, below those of a sharpening filter.
_NEGATIVE = 0.4


@np.errstate(over="ignore", invalid="ignore")  # values whose sum overflows are refused below
def load_kernels(path: str | Path) -> np.ndarray:
    """Read blur kernels from a path or URI.

    Supported are `.npy`, `.npz` (the array `kernels`, or the only one), MATLAB `.mat` (classic or HDF5; the variable
    `kernels`, or the only one; a cell array or a numeric one), and `.png` (one grey picture). Arrays are (k, k),
    (N, k, k) or (k, k, N); axes of length 1 are ignored. In a MATLAB cube (k, k, k) the last axis counts the kernels;
    any other ambiguous array is refused. Kernels of different sides are padded with zeros on all sides to the largest;
    an even side gets a row and a column of zeros at its end. Positions are kept: nothing is recentred.

    Returns:
        (N, k, k) float32, k odd, each of sum 1: values are divided by their sum. They may have negative lobes, like a
        blur followed by a bicubic or Lanczos reduction.

    Raises:
        ArtefactError: the file is missing, unreadable or holds no kernels.
        BadRequestError: the kind of file is unknown.
    """
    from kernels_bank import kernel_files
    from kernels_bank.runtime import storage

    readers = kernel_files.READERS
    suffix = Path(str(path)).suffix.lower()
    if suffix not in readers:
        raise BadRequestError(f"{path}: unknown kind of kernel file '{suffix}'; use {', '.join(readers)}")
    data = storage.read_bytes(path, limit=kernel_files.MOST_BYTES)
    try:
        found = readers[suffix](data)
        for array in found if isinstance(found, list) else [found]:
            _refuse_other_types(array)
        kernels = found if isinstance(found, list) else split(found, last_counts=suffix == ".mat")
    except BadRequestError as error:
        raise type(error)(f"{path}: {error}") from error
    except Exception as error:
        raise ArtefactError(f"{path}: cannot be read as {suffix} ({' '.join(str(error).split())})") from error
    if not kernels:
        raise ArtefactError(f"{path}: holds no kernels")
    for i, kernel in enumerate(kernels, start=1):
        _check(kernel, f"{path}: kernel {i}")
    side = max(max(kernel.shape) for kernel in kernels)
    side += 1 - side % 2
    try:
        kernel_files.refuse_large((len(kernels), side, side))
    except ArtefactError as error:
        raise ArtefactError(f"{path}: with all kernels as large as the largest, {error}") from error
    return np.stack([_normal(kernel, side) for kernel in kernels])


def split(array: np.ndarray, *, last_counts: bool) -> list[np.ndarray]:
    """Return the kernels of an array: (k, k), (N, k, k) or (k, k, N), ignoring axes of length 1.

    Args:
        array: array of any shape.
        last_counts: whether the last axis of a cube counts the kernels; otherwise a cube is refused.

    Raises:
        ArtefactError: the shape is wrong or ambiguous.
    """
    shape = array.shape
    array = array.reshape([length for length in shape if length != 1] or [1, 1]) if 0 not in shape else array
    if array.ndim == 2:
        _refuse_flattened(array)
        return [array]
    if array.ndim == 3 and len(set(array.shape)) == 1 and not last_counts:
        raise ArtefactError(
            f"an array of shape {shape} can be read as (N, k, k) or as (k, k, N); "
            "add a row and a column of zeros to its kernels to tell the axes apart"
        )
    if array.ndim == 3 and array.shape[1] == array.shape[2] and len(set(array.shape)) > 1:
        return list(array)
    if array.ndim == 3 and array.shape[0] == array.shape[1]:
        return list(np.moveaxis(array, 2, 0))
    raise ArtefactError(f"an array of shape {shape} holds no kernels; (N, k, k) is expected")


def _refuse_flattened(array: np.ndarray) -> None:
    """Refuse rows or columns that may be whole flattened kernels; in a square array only if each sums to 1."""
    readings = []
    for name, count, length, sums in (
        ("rows", *array.shape, array.sum(1)),
        ("columns", *array.shape[::-1], array.sum(0)),
    ):
        side = math.isqrt(length)
        if side < 3 or side * side != length or count < 2:
            continue
        if count != length or np.allclose(sums, 1, atol=1e-3):
            readings.append((f"{count} flattened ones of {side} x {side}, its {name}", f"({count}, {side}, {side})"))
    if readings:
        raise ArtefactError(
            f"an array of shape {array.shape} can be read as one kernel or as "
            f"{', or as '.join(reading for reading, _ in readings)}; reshape it to "
            f"{' or '.join(dict.fromkeys(shape for _, shape in readings))}, or fill one kernel up with zeros to a "
            "square"
        )


def _refuse_other_types(array: np.ndarray) -> None:
    if array.dtype.kind not in "iuf":
        raise ArtefactError(f"real numbers are expected, got values of type {array.dtype}")


def _check(kernel: np.ndarray, where: str) -> None:
    if kernel.ndim != 2 or 0 in kernel.shape:
        raise ArtefactError(f"{where}: a (k, k) array is expected, got shape {kernel.shape}")
    if not np.isfinite(kernel).all():
        raise ArtefactError(f"{where}: some of its values are infinite or no numbers (NaN)")
    values = kernel.astype(np.float64)
    total = values.clip(0).sum()
    if not 0 < total < np.inf:
        raise ArtefactError(f"{where}: has no positive value" if total <= 0 else f"{where}: its values are too large")
    if (negative := -values.clip(max=0).sum() / total) > _NEGATIVE:
        raise ArtefactError(
            f"{where}: negative values of {negative:.0%} of the positive ones; a blur has none, a reduction's lobes "
            f"make up at most {_NEGATIVE:.0%}"
        )


def _normal(kernel: np.ndarray, side: int) -> np.ndarray:
    """Return the kernel in the middle of a (side, side) field, as float32 of sum 1."""
    values = kernel.astype(np.float64)
    field = np.zeros((side, side))
    # An even side first gets its extra row at the end, so that its origin, row k // 2, stays the middle pixel.
    top, left = (side // 2 - length // 2 for length in values.shape)
    field[top : top + values.shape[0], left : left + values.shape[1]] = values
    return (field / field.sum()).astype(np.float32)
