"""Kernels from files that others made."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from kernels_bank.runtime.errors import ArtefactError, BadRequestError

_HDF5 = b"\x89HDF\r\n\x1a\n"


def load_kernels(path: str | Path) -> np.ndarray:
    """Read blur kernels from a path or URI.

    `.npy`, `.npz` (the array `kernels`, or the only one), MATLAB `.mat` (classic or HDF5; the variable `kernels`, or
    the only one; a cell array or a numeric one of shape (k, k), (N, k, k) or (k, k, N)), `.png` (one grey picture).
    Kernels of different sides are padded with zeros around to the largest; an even side gets a row and a column of
    zeros at its end. Positions are kept: nothing is recentred.

    Returns:
        (N, k, k) float32, k odd, >= 0, each of sum 1. Values are clipped at 0 and divided by their sum.

    Raises:
        ArtefactError: the file is missing, unreadable or holds no kernels.
        BadRequestError: an unknown kind of file.
    """
    from kernels_bank.runtime import storage

    readers = {".npy": _npy, ".npz": _npz, ".mat": _mat, ".png": _png}
    suffix = Path(str(path)).suffix.lower()
    if suffix not in readers:
        raise BadRequestError(f"{path}: unknown kind of kernel file '{suffix}'; use {', '.join(readers)}")
    data = storage.read_bytes(path)
    try:
        found = list(readers[suffix](data))
    except BadRequestError as error:
        raise type(error)(f"{path}: {error}") from error
    except Exception as error:
        raise ArtefactError(f"{path}: cannot be read as {suffix} ({' '.join(str(error).split())})") from error
    if not found:
        raise ArtefactError(f"{path}: holds no kernels")
    side = max(max(kernel.shape) for kernel in found)
    side += 1 - side % 2
    return np.stack([_normal(kernel, side, f"{path}: kernel {i}") for i, kernel in enumerate(found, start=1)])


def _normal(kernel: np.ndarray, side: int, where: str) -> np.ndarray:
    """The kernel in the middle of a (side, side) field, as float32 of sum 1."""
    if kernel.ndim != 2 or not np.isfinite(kernel).all():
        raise ArtefactError(f"{where}: a finite (k, k) array is expected, got shape {kernel.shape}")
    values = np.maximum(kernel.astype(np.float64), 0)
    if values.sum() <= 0:
        raise ArtefactError(f"{where}: has no positive value")
    field = np.zeros((side, side))
    # An even side gets its extra row at the end first, so that its origin, row k // 2, stays the middle pixel.
    top, left = (side // 2 - length // 2 for length in values.shape)
    field[top : top + values.shape[0], left : left + values.shape[1]] = values
    return (field / field.sum()).astype(np.float32)


def _split(array: np.ndarray) -> Iterable[np.ndarray]:
    """The kernels of a numeric array: (k, k), (N, k, k), or MATLAB's (k, k, N)."""
    if array.ndim == 2:
        return [array]
    if array.ndim == 3 and array.shape[1] == array.shape[2]:
        return list(array)
    if array.ndim == 3 and array.shape[0] == array.shape[1]:
        return list(np.moveaxis(array, 2, 0))
    raise ArtefactError(f"an array of shape {array.shape} holds no kernels; (N, k, k) is expected")


def _only(arrays: dict[str, Any]) -> Any:  # noqa: ANN401 - arrays, or an HDF5 node
    """The variable `kernels`, or the only variable."""
    if "kernels" in arrays:
        return arrays["kernels"]
    if len(arrays) != 1:
        raise ArtefactError(f"has the variables {', '.join(sorted(arrays)) or '(none)'}; name one of them 'kernels'")
    return next(iter(arrays.values()))


def _npy(data: bytes) -> Iterable[np.ndarray]:
    return _split(np.load(io.BytesIO(data), allow_pickle=False))


def _npz(data: bytes) -> Iterable[np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
        return _split(_only({name: archive[name] for name in archive.files}))


def _png(data: bytes) -> Iterable[np.ndarray]:
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        # 16-bit pictures open as mode I;16; others are reduced to luma.
        grey = picture if picture.mode.startswith("I") else picture.convert("L")
        return [np.asarray(grey, dtype=np.float64)]


def _mat(data: bytes) -> Iterable[np.ndarray]:
    from scipy import io as scipy_io

    # MATLAB 7.3 files are HDF5 behind a header of 512 bytes; other programs write none.
    if _HDF5 in (data[:8], data[512:520]):
        return _mat_hdf5(data)
    stream: Any = io.BytesIO(data)  # SciPy's stubs know paths only
    variables = scipy_io.loadmat(stream)
    value = _only({name: v for name, v in variables.items() if not name.startswith("__")})
    return list(value.ravel()) if value.dtype == object else _split(value)


def _mat_hdf5(data: bytes) -> Iterable[np.ndarray]:
    try:
        import h5py
    except ImportError as error:
        raise BadRequestError("is a MATLAB 7.3 (HDF5) file, which needs the package h5py: pip install h5py") from error
    with h5py.File(io.BytesIO(data), "r") as file:
        value = _only({name: node for name, node in file.items() if not name.startswith("#")})
        # MATLAB stores columns first, so every array comes transposed.
        if value.dtype == object:
            return [np.asarray(file[reference]).T for reference in value[()].ravel()]
        return _split(np.asarray(value).T)
